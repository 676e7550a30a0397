create or replace trigger exai_note_change
    before update on public.conversations for each row
    when (new.revision = old.revision and (
        new.owner is distinct from old.owner or new.continuation_id is distinct from old.continuation_id
        or new.title is distinct from old.title or new.metadata is distinct from old.metadata
        or new.tags is distinct from old.tags or new.deleted_at is distinct from old.deleted_at
        or new.expires_at is distinct from old.expires_at
        or new.parent_id is distinct from old.parent_id or new.parent_seq is distinct from old.parent_seq))
    execute function exai.note_change_v1()
