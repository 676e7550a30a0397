create table exai.content_texts (
    owner text not null,
    sha256 text not null,
    source text not null,
    text text,
    note text not null,
    made_at timestamptz not null default now(),
    constraint content_texts_pkey primary key (owner, sha256),
    constraint content_texts_content_fkey foreign key (owner, sha256)
        references exai.contents (owner, sha256) on delete cascade,
    constraint content_texts_source_check check (source in ('local', 'provider'))
)
