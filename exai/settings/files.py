"""The sections of the settings about files and where they are stored."""

from __future__ import annotations

import base64
import json
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr

from exai.settings.addresses import UnusableAddress, check_header
from exai.settings.sections import ApiKey, BaseUrl, Directory, Section, secret

BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def _check_storage_key(key: str) -> str:
    cure = "Copy the secret key (sb_secret_...) or the service_role key; in Supabase it is under API Keys"
    if key.startswith("sb_publishable_"):
        raise UnusableAddress("is a publishable key, which may not store files", cure)
    if _role_of(key) == "anon":
        raise UnusableAddress("is the anon key, which may not store files", cure)
    return check_header(key)


def _role_of(key: str) -> str | None:
    """Return the role in a key of the older kind, which is a signed token; the newer ones are opaque."""
    payload = key.split(".")[1] if key.startswith("eyJ") and key.count(".") == 2 else ""
    try:
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except ValueError:
        return None
    return claims.get("role") if isinstance(claims, dict) else None


def _check_bucket(name: str) -> str:
    if not BUCKET_NAME.fullmatch(name):
        raise UnusableAddress("cannot be a bucket's name", "Use 3 to 63 lower-case letters, digits, - and .")
    return name


StorageKey = Annotated[SecretStr, secret(_check_storage_key)]
BucketName = Annotated[str, AfterValidator(_check_bucket)]


class SupabaseStorageSettings(Section):
    """A private bucket of Supabase Storage, used if both address and key are set."""

    url: BaseUrl | None = None
    key: StorageKey | None = None
    bucket: BucketName = "exai"

    @property
    def is_on(self) -> bool:
        """Return whether the store can be used."""
        return self.url is not None and self.key is not None


class S3Settings(Section):
    """A bucket of an S3-compatible service, used if `bucket` is set; without keys those of the environment are used."""

    bucket: BucketName | None = None
    endpoint: BaseUrl | None = None
    region: str = "us-east-1"
    access_key_id: ApiKey | None = None
    secret_access_key: ApiKey | None = None
    prefix: str = ""


class FileSettings(Section):
    """Files. Without roots no file of this machine is read by its path."""

    store: Literal["postgres", "directory", "supabase", "s3"] = "postgres"
    supabase: SupabaseStorageSettings = SupabaseStorageSettings()
    s3: S3Settings = S3Settings()
    roots: tuple[Directory, ...] = ()
    max_bytes: int = Field(default=32 * 1_048_576, ge=1024, le=1_073_741_824)
    call_max_bytes: int = Field(default=128 * 1_048_576, ge=1024)
    import_max_bytes: int = Field(default=8 * 1_073_741_824, ge=1024)
    orphan_grace_s: float = Field(default=3_600.0, ge=60)
    provider_extract: bool = True
