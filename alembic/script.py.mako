"""${message}.

Why: say what this makes possible.
Locks: say which locks it takes and for how long.
"""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    ${upgrades if upgrades else 'raise NotImplementedError'}


def downgrade() -> None:
    ${downgrades if downgrades else 'raise NotImplementedError'}
