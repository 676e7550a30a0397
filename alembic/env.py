"""Runs migrations for Alembic's command line and for `exai.db.migrations.migrate.upgrade` alike.

One run at a time changes a database: all of it happens under the lock that `exai.db.migrations.migrate` holds.
"""

import asyncio
from logging.config import fileConfig

from alembic import context
from alembic.util import CommandError

from exai.db.migrations.migrate import address_of, migrate
from exai.errors import ExaiError

if context.config.config_file_name:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)
if context.is_offline_mode():
    raise CommandError("the migrations look at what the database holds; run them without --sql")
try:
    asyncio.run(migrate(address_of(context.config), context))
except ExaiError as error:
    raise CommandError(str(error)) from error
