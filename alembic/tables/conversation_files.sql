create table public.conversation_files (
    conversation_id uuid not null,
    file_id uuid not null,
    source jsonb,
    constraint conversation_files_pkey primary key (conversation_id, file_id),
    constraint conversation_files_conversation_fkey foreign key (conversation_id)
        references public.conversations (id) on delete cascade,
    constraint conversation_files_file_fkey foreign key (file_id)
        references public.files (id) on delete cascade
)
