"""Source files of this machine for a model: files, directories, globs, ranges of lines and git diffs, within limits."""

from exai.files.sources.comparing import ChangedFile
from exai.files.sources.reader import SourceReader, SourceRequest, SourcesRead

__all__ = ["ChangedFile", "SourceReader", "SourceRequest", "SourcesRead"]
