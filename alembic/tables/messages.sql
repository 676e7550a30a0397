create table public.messages (
    conversation_id uuid not null,
    seq bigint not null,
    turn_id uuid,
    role text not null,
    kind text not null default 'message',
    content text not null,
    message_key text,
    metadata jsonb not null default '{}',
    created_at timestamptz not null default now(),
    constraint messages_pkey primary key (conversation_id, seq),
    constraint messages_conversation_fkey foreign key (conversation_id)
        references public.conversations (id) on delete cascade,
    constraint messages_role_check check (role in ('system', 'user', 'assistant', 'tool')),
    constraint messages_seq_check check (seq >= 1)
)
