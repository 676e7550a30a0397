"""Implements `exai chat --list`, `exai search` and `exai show`: stored conversations at the terminal.

Invariant: standard output holds the requested data and nothing else; messages about it go to standard
error.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import datetime
from typing import TextIO

from exai.app import App, open_app
from exai.cli.command import with_few_connections
from exai.cli.terminal_text import shown
from exai.db.filters import ALL, WITH_MESSAGES, ListFilter
from exai.db.search import SearchQuery
from exai.errors import InvalidArgument, NotFound
from exai.models import LOCAL_OWNER, ContinuationId, Conversation, Owner
from exai.settings.load import Settings

LISTED = 50
CANDIDATES = 200
NAMED = 5
"""Maximum number of conversations that the error for an ambiguous id lists."""


@dataclass(frozen=True, slots=True)
class Output:
    """The streams for results and for messages; `program` is the command to call this program again."""

    result: TextIO
    said: TextIO
    program: str = "exai"

    def write(self, text: str) -> None:
        """Write one or more lines of the result."""
        self.result.write(shown(text, self.result) + "\n")

    def say(self, text: str) -> None:
        """Write one message line."""
        print(shown(text, self.said), file=self.said, flush=True)


async def show(settings: Settings, owner: Owner, name: str, limit: int, output: Output) -> None:
    """Write the newest messages of one conversation, oldest first."""
    async with open_app(with_few_connections(settings)) as app:
        await check_owner(app, settings, owner)
        found = await whole_id(app, owner, name, output.program)
        page = await app.conversations.read(owner, found, limit=limit)
    output.write(line_of(page.conversation))
    for message in page.messages:
        output.write(f"\n[{message.seq}] {message.role}  {_time(message.created_at)}\n{message.content}")
    output.result.flush()
    if page.next_before_seq is not None:
        command = f"{output.program} show{owner_option(owner)} {found} --limit N"
        output.say(f"(the {limit} newest; `{command}` shows more, `export` all)")


async def search(settings: Settings, query: SearchQuery, limit: int, output: Output) -> None:
    """Write the best matching messages, each with its conversation."""
    async with open_app(with_few_connections(settings)) as app:
        page = await app.conversations.search(query, limit=limit)
        if not page.hits:
            await check_owner(app, settings, query.owner)
    for hit in page.hits:
        title = " ".join((hit.title or "").split())
        output.write(f"{hit.continuation_id}  [{hit.seq}]  {_time(hit.created_at)}  {title}".rstrip())
        output.write("    " + " ".join(hit.snippet.split()))
    output.result.flush()
    if not page.hits:
        output.say("nothing was found")
    elif page.matched == "some":
        output.say("(no message has all of these words; these have most of them)")
    if page.unread:
        output.say(
            f"({page.unread} messages were stored just now and not looked through; search again in a few seconds)"
        )
    if page.next_cursor is not None:
        output.say(f"(the {limit} best; --limit N shows more)")


async def list_newest(app: App, owner: Owner, output: Output) -> None:
    """Write one line for each of the newest conversations."""
    page = await app.conversations.list(owner, limit=LISTED, only=WITH_MESSAGES)
    for conversation in page.conversations:
        output.write(line_of(conversation))
    output.result.flush()
    if page.next_cursor:
        output.say(f"(the {LISTED} newest; there are more)")
    elif not page.conversations:
        output.say("no conversations yet")


async def check_owner(app: App, settings: Settings, owner: Owner) -> None:
    """Raise `NotFound` for an owner without conversations that is not configured either, as after a typing error."""
    if owner == LOCAL_OWNER or owner in settings.server.tokens:
        return
    for only in (ALL, ListFilter(deleted=True)):
        if (await app.conversations.list(owner, limit=1, only=only)).conversations:
            return
    cure = "An owner is a name in EXAI_SERVER__TOKENS or the sub of a signed token; correct --owner"
    raise NotFound("conversation of owner", owner, cure)


async def newest_id(app: App, owner: Owner) -> ContinuationId:
    """Return the id of the conversation that changed last. Raises `InvalidArgument` if there is none."""
    page = await app.conversations.list(owner, limit=1, only=WITH_MESSAGES)
    if not page.conversations:
        raise InvalidArgument("--last", "there is no conversation yet", "Omit --last to start one")
    return page.conversations[0].continuation_id


async def whole_id(app: App, owner: Owner, name: str, program: str = "exai") -> ContinuationId:
    """Return the id that equals `name`, or the only one that begins with it.

    Raises `InvalidArgument` if there are several, `NotFound` if there is none.
    """
    try:
        await app.conversations.read(owner, ContinuationId(name), limit=1)
    except NotFound as error:
        page = await app.conversations.list(owner, limit=CANDIDATES, only=ListFilter(part=name, has_messages=True))
        found = [each for each in page.conversations if each.continuation_id.startswith(name)]
        if not found:
            raise NotFound(error.kind, name, f"`{program} chat{owner_option(owner)} --list` lists them") from error
        if len(found) > 1:
            raise InvalidArgument("ID", _ambiguous(name, found), "Write more of it") from error
        return found[0].continuation_id
    return ContinuationId(name)


def owner_option(owner: Owner) -> str:
    """Return the option that names the owner in a suggested command; empty for the default owner."""
    return "" if owner == LOCAL_OWNER else f" --owner {shlex.quote(owner)}"


def _ambiguous(name: str, found: list[Conversation]) -> str:
    named = ", ".join(each.continuation_id for each in found[:NAMED])
    more = ", ..." if len(found) > NAMED else ""
    return f"{len(found)} conversations begin with {name!r}: {named}{more}"


def line_of(conversation: Conversation) -> str:
    """Return a description of a conversation on one line."""
    title = " ".join((conversation.title or "").split())
    count = conversation.last_seq
    messages = f"{count:>4} {'message ' if count == 1 else 'messages'}"
    kind = "" if conversation.newest_kind in (None, "message") else f"({conversation.newest_kind})  "
    return f"{conversation.continuation_id}  {_time(conversation.updated_at)}  {messages}  {kind}{title}".rstrip()


def _time(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")
