create table exai.message_words (
    conversation_id uuid not null,
    seq bigint not null,
    created_at timestamptz not null,
    part smallint not null default 0,
    words tsvector not null,
    constraint message_words_pkey primary key (conversation_id, seq, part),
    constraint message_words_conversation_fkey foreign key (conversation_id)
        references public.conversations (id) on delete cascade
)
