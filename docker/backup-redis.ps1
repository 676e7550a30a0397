<#
.SYNOPSIS
Saves and restores EXAI's cache, the service valkey of compose.yaml.

.DESCRIPTION
A lost cache costs time and no data, so this is for a warm start, not for safety.

  docker\backup-redis.ps1                  saves to backups\cache-TIME.rdb and keeps the newest 7 files
  docker\backup-redis.ps1 -Restore FILE    replaces the cache by the one in FILE
#>
[CmdletBinding()]
param(
    [string] $Restore,
    [string] $BackupDir = 'backups',
    [string] $SecretsDir = 'secrets',
    [ValidateRange(1, 1000)] [int] $Keep = 7,
    [ValidateRange(1, 86400)] [int] $LimitSeconds = 600
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

# Sends one command as the user admin, whose password goes through a pipe and so into no list of processes.
function Invoke-Valkey {
    param([Parameter(Mandatory)] [string[]] $Command)
    # Without double quotes, which some releases of PowerShell do not pass on.
    $script = 'REDISCLI_AUTH=$(tr -d \\r\\n); export REDISCLI_AUTH; exec valkey-cli --user admin $@'
    $password = (Get-Content -Raw -LiteralPath (Join-Path $SecretsDir 'valkey_admin_password')).Trim()
    $answer = $password | docker compose exec -T valkey sh -c $script sh @Command
    if ($LASTEXITCODE -ne 0) { throw "the server does not answer: $answer" }
    return $answer
}

function Get-Persistence {
    param([Parameter(Mandatory)] [string] $Name)
    foreach ($line in (Invoke-Valkey -Command @('INFO', 'persistence'))) {
        if ($line.Trim() -match "^${Name}:(.*)$") { return $Matches[1] }
    }
    throw "the server does not state $Name"
}

function Test-Snapshot {
    param([Parameter(Mandatory)] [string] $Path)
    $stream = [System.IO.File]::OpenRead((Resolve-Path -LiteralPath $Path))
    try {
        $bytes = New-Object byte[] 6
        $read = $stream.Read($bytes, 0, 6)
    } finally {
        $stream.Dispose()
    }
    return $read -eq 6 -and [System.Text.Encoding]::ASCII.GetString($bytes) -in @('REDIS0', 'VALKEY')
}

function Save-Cache {
    New-Item -ItemType Directory -Force -Path $BackupDir | Out-Null
    $before = [long] (Invoke-Valkey -Command @('LASTSAVE'))
    # LASTSAVE has seconds: a save in the second of the last one would not be seen.
    while ([long] (Invoke-Valkey -Command @('TIME'))[0] -le $before) { Start-Sleep -Seconds 1 }
    Invoke-Valkey -Command @('BGSAVE', 'SCHEDULE') | Out-Null
    $end = (Get-Date).AddSeconds($LimitSeconds)
    while ((Get-Persistence -Name 'rdb_bgsave_in_progress') -ne '0' -or [long] (Invoke-Valkey -Command @('LASTSAVE')) -le $before) {
        if ((Get-Persistence -Name 'rdb_last_bgsave_status') -eq 'err' -and (Get-Persistence -Name 'rdb_bgsave_in_progress') -eq '0') {
            throw 'the server could not save; its log has the cause'
        }
        if ((Get-Date) -gt $end) { throw "the server did not save within $LimitSeconds s" }
        Start-Sleep -Seconds 1
    }
    $time = (Get-Date).ToUniversalTime().ToString('yyyyMMddTHHmmssZ')
    $file = Join-Path $BackupDir "cache-$time.rdb"
    # Not by a pipe, which would change the bytes.
    docker compose cp 'valkey:/data/dump.rdb' "$file.unfinished"
    if ($LASTEXITCODE -ne 0) { throw 'the snapshot could not be copied' }
    if (-not (Test-Snapshot -Path "$file.unfinished")) { throw "$file.unfinished is not a snapshot" }
    Move-Item -LiteralPath "$file.unfinished" -Destination $file
    Write-Output $file
    # In the order of their names, which is that of their times.
    Get-ChildItem -Path $BackupDir -Filter 'cache-*.rdb' |
        Sort-Object -Property Name -Descending |
        Select-Object -Skip $Keep |
        Remove-Item
}

function Restore-Cache {
    param([Parameter(Mandatory)] [string] $Path)
    if (-not (Test-Snapshot -Path $Path)) { throw "$Path is not a snapshot" }
    # The server reads its log and not the snapshot where it keeps both, so the snapshot becomes the base of a new log.
    $place = 'cd /data && rm -rf appendonlydir && mkdir appendonlydir && cp /restore.rdb dump.rdb && ' +
        'cp dump.rdb appendonlydir/appendonly.aof.1.base.rdb && ' +
        'echo file appendonly.aof.1.base.rdb seq 1 type b >appendonlydir/appendonly.aof.manifest'
    $source = (Resolve-Path -LiteralPath $Path).Path
    docker compose stop valkey
    docker compose run --rm --no-deps -T --entrypoint sh --volume "${source}:/restore.rdb:ro" valkey -c $place
    if ($LASTEXITCODE -ne 0) { throw 'the snapshot could not be placed' }
    docker compose up --no-deps --detach --wait valkey
    if ($LASTEXITCODE -ne 0) { throw 'the server did not start with the snapshot' }
    Write-Output "restored from $Path"
}

if ($Restore) { Restore-Cache -Path $Restore } else { Save-Cache }
