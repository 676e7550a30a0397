"""Runs one server process that must not outlive the program that started it.

Runs as a script, with one JSON argument and only the standard library, in a process of its own: the work between
fork and exec (a death signal, another identity) is done here after an exec, where it is safe however many threads the
program has. Invariant: once the program has ended, also by a signal, the server is stopped.
"""

from __future__ import annotations

import ctypes
import json
import os
import pwd
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522
CLONE_NEWUSER = 0x10000000

EXIT_ORPHANED = 81
EXIT_NO_IDENTITY = 82

SUPERVISED_STOP_LIMIT_S = 10.0


def main() -> None:
    """Take the requested identity, tie the process to its parent, and exec the server."""
    plan: dict[str, Any] = json.loads(sys.argv[1])
    # A shell that runs the program in the background from a script makes it and its children ignore these signals.
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    argv: list[str] = plan["argv"]
    if plan["named_user"]:
        take_named_identity([Path(path) for path in plan["private_dirs"]])
    if plan["tie"] == "pipe":
        sys.exit(supervise(argv, plan["stop_signal"]))
    # After the change of identity, which clears the setting.
    libc_call("prctl", PR_SET_PDEATHSIG, plan["stop_signal"], 0, 0, 0)
    if os.getppid() != plan["parent_pid"]:
        # The parent ended before the prctl call, so the signal would never come.
        sys.exit(EXIT_ORPHANED)
    os.execv(argv[0], argv)  # noqa: S606


def supervise(argv: list[str], stop_signal: int) -> int:
    """Run the server until it ends, a signal stops it, or standard input ends: only the program holds the other end."""
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (stop_signal, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, close_fds=False) as server:  # noqa: S603
        while server.poll() is None:
            ready, _, _ = select.select([0, awake], [], [])
            if 0 in ready or stop_signal in os.read(awake, 64):
                break
        if server.poll() is None:
            server.send_signal(stop_signal)
            try:
                server.wait(SUPERVISED_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                server.kill()
        return abs(server.wait())


def take_named_identity(private_dirs: list[Path]) -> None:
    """Become a user that is not root and has a name, as Postgres requires, and own `private_dirs` as that user.

    No account is added, and nothing outside `private_dirs` changes owner or mode. First choice: a user namespace in
    which this user is called nobody; outside it remains the same user, so every path stays readable. Where namespaces
    are refused (as in many containers): the real user nobody, with the right to pass directories such as a 0700 home.
    """
    nobody = named_user()
    if namespaces_work():
        own(private_dirs, os.geteuid(), os.getegid())
        enter_namespace(nobody)
        return
    if os.geteuid() != 0:
        fail(f"user id {os.geteuid()} has no name and user namespaces are refused: give it a line in /etc/passwd")
    try:
        own(private_dirs, nobody.pw_uid, nobody.pw_gid)
        switch_to(nobody)
    except OSError as error:
        fail(f"Postgres does not run as root, and root may not become {nobody.pw_name} here: {error.strerror}")


def named_user() -> pwd.struct_passwd:
    """Return the account to run as: nobody, or any other that is not root."""
    accounts = [account for account in pwd.getpwall() if account.pw_uid != 0]
    if not accounts:
        fail("Postgres does not run as root, and /etc/passwd names no other user")
    return next((account for account in accounts if account.pw_name == "nobody"), accounts[0])


def namespaces_work() -> bool:
    """Return whether a user namespace can be entered; tried in a child process, because a failure cannot be undone."""
    if not sys.platform.startswith("linux"):
        return False
    pid = os.fork()
    if pid == 0:
        try:
            enter_namespace(named_user())
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def enter_namespace(account: pwd.struct_passwd) -> None:
    """Make this process see itself as `account`; the rest of the system sees no change."""
    uid, gid = os.geteuid(), os.getegid()
    libc_call("unshare", CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{account.pw_uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{account.pw_gid} {gid} 1")


def switch_to(account: pwd.struct_passwd) -> None:
    """Give up root for good, keeping only the capability to bypass file modes if it is available."""
    os.setgroups([])
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    if not sys.platform.startswith("linux"):
        os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
        return
    libc_call("prctl", PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    keep = 1 << CAP_DAC_OVERRIDE
    data = (ctypes.c_uint32 * 6)(keep, keep, keep, 0, 0, 0)
    try:
        libc_call("capset", header, data)
        libc_call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0)
    except OSError:
        # Root without that capability: world-readable files still work, and the server's log names the others.
        return


def own(directories: list[Path], uid: int, gid: int) -> None:
    """Change the owner of whole trees, unless their top directory shows that this was done."""
    for top in directories:
        if top.stat().st_uid == uid:
            continue
        for directory, _, names in os.walk(top, topdown=False):
            for name in names:
                os.chown(Path(directory, name), uid, gid, follow_symlinks=False)
            # The top directory comes last, so that an interrupted change is repeated.
            os.chown(directory, uid, gid)


def libc_call(name: str, *arguments: Any) -> None:
    """Call a function of the C library. Raises OSError if it fails."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def fail(problem: str) -> NoReturn:
    """Write the reason to the server's log, where the launcher reads it, and exit."""
    sys.stderr.write(f"{problem}\n")
    sys.exit(EXIT_NO_IDENTITY)


if __name__ == "__main__":
    main()
