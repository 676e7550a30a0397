create table exai.answers (
    owner text not null,
    rest text not null,
    embedding text not null,
    question text not null,
    vector real[] not null,
    conversation_id uuid not null,
    question_seq bigint not null,
    seq bigint not null,
    created_at timestamptz not null,
    constraint answers_pkey primary key (owner, embedding, rest, question),
    constraint answers_conversation_fkey foreign key (conversation_id)
        references public.conversations (id) on delete cascade
)
