-- Gives the roles that exist the rights they should have on EXAI's objects, and takes all others from them; returns the
-- roles. anon: nothing. authenticated: its own rows (those of the token's subject), of requests also what a client may
-- write. service_role: to read conversations and requests, and metrics. exai_app: what the service needs, without DDL
-- and without BYPASSRLS. Row level security is on for every table.
--
-- p_anonymous: whether users who signed in anonymously are admitted (null: as before, at first not). Tables of an older
-- system keep their grants and policies for its clients unless p_adopted is true. Can be repeated; a policy is created
-- again only if its text has changed.
create or replace function exai.grant_access_v1(p_anonymous boolean default null, p_adopted boolean default false)
returns text[]
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '4s'
as $$
declare
  c_lock constant bigint := 7311701100470826099;
  c_open constant text[] := array['conversations', 'messages', 'turns', 'files', 'conversation_files', 'requests'];
  -- A select of its own, by which Supabase's advisor recognizes that it is evaluated once for a statement.
  c_claims constant text := 'nullif((select current_setting(''request.jwt.claims'', true)), '''')::jsonb';
  c_sub constant text := '(select nullif(' || c_claims || ' ->> ''sub'', ''local''))';
  c_named constant text := '(select not coalesce((' || c_claims || ' ->> ''is_anonymous'')::boolean, false))';
  c_mine constant text := 'conversation_id in (select c.id from public.conversations c where c.owner = ' || c_sub
                          || ' and c.deleted_at is null)';
  v_roles constant text[] := array(
    select r.rolname::text from pg_roles r
     where r.rolname in ('anon', 'authenticated', 'service_role', 'exai_app') order by 1);
  v_everybody constant text := array_to_string('public'::text || v_roles, ', ');
  v_anonymous constant boolean := coalesce(p_anonymous, (
    select bool_or(p.polname = 'exai_own') and not bool_or(p.polname = 'exai_named')
      from pg_policy p where p.polrelid = to_regclass('public.conversations')), false);
  t record;
  p record;
  v_text text;
begin
  perform pg_advisory_xact_lock(c_lock);
  execute 'revoke all on schema exai, monitoring from ' || v_everybody;
  for p in
    select g.role, g.schemas from (values
      ('authenticated', 'exai'), ('service_role', 'monitoring'), ('exai_app', 'exai, monitoring, public')
    ) g(role, schemas) where g.role = any(v_roles)
  loop
    execute format('grant usage on schema %s to %I', p.schemas, p.role);
  end loop;

  for t in
    select c.oid, format('%I.%I', n.nspname, c.relname) as name, n.nspname::text as schema, c.relname::text as table,
           c.relkind, c.relrowsecurity as is_secured, c.relispartition as is_part,
           n.nspname = 'public' and not p_adopted
             and exists (select from exai.adopted_tables a where a.name = c.relname) as is_kept
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
       and (n.nspname in ('exai', 'monitoring') or (n.nspname = 'public' and c.relname = any(c_open)))
     -- Partitions last: a statement that writes locks the partitioned table first.
     order by c.relispartition, c.oid
  loop
    if t.relkind = 'S' then
      execute format('revoke all on sequence %s from %s', t.name, v_everybody);
      for p in select r.role from unnest(v_roles) r(role) where r.role = 'exai_app'
                  or (r.role = 'service_role' and t.schema = 'monitoring') loop
        execute format('grant usage on sequence %s to %I', t.name, p.role);
      end loop;
      continue;
    end if;
    if not t.is_kept then
      execute format('revoke all on %s from %s', t.name, v_everybody);
      if t.relkind in ('r', 'p') and not t.is_secured then
        execute format('alter table %s enable row level security', t.name);
      end if;
    end if;
    for p in
      select g.role, g.rights from (values
        ('authenticated', 'public.' || t.table, 'select'),
        ('authenticated', 'public.requests', 'insert (id, tool, arguments, deadline_at), update (state, read_at)'),
        ('service_role', 'public.' || t.table, 'select'),
        ('service_role', 'monitoring.metrics_raw', 'select, insert'),
        ('service_role', 'monitoring.metrics_processing_log', 'select, insert, update'),
        ('service_role', 'monitoring.erased_owners', 'select'),
        ('service_role', 'monitoring.metrics_1min', 'select'),
        ('service_role', 'monitoring.metrics_1hour', 'select'),
        ('exai_app', 'exai.alembic_version', 'select'),
        ('exai_app', case when t.name <> 'exai.alembic_version' then t.name end, 'select, insert, update, delete')
      ) g(role, name, rights)
       where g.role = any(v_roles) and g.name = t.name and (not t.is_kept or g.role = 'exai_app')
    loop
      execute format('grant %s on %s to %I', p.rights, t.name, p.role);
    end loop;
    continue when t.relkind not in ('r', 'p');

    if t.schema = 'public' and not t.is_kept and (v_anonymous or 'authenticated' <> all(v_roles)) then
      if exists (select from pg_policy x where x.polrelid = t.oid and x.polname = 'exai_named') then
        execute format('drop policy exai_named on %s', t.name);
      end if;
    end if;
    for p in
      select w.name, w.role, format('create policy %I on %s as %s for %s to %I %s', w.name, t.name, w.kind, w.verb,
                                    w.role, w.condition) as text
        from (values
          ('conversations', 'exai_own', 'permissive', 'select', 'authenticated',
           'using (owner = ' || c_sub || ' and deleted_at is null)'),
          ('messages', 'exai_own', 'permissive', 'select', 'authenticated', 'using (' || c_mine || ')'),
          ('turns', 'exai_own', 'permissive', 'select', 'authenticated', 'using (' || c_mine || ')'),
          ('files', 'exai_own', 'permissive', 'select', 'authenticated', 'using (owner = ' || c_sub || ')'),
          ('conversation_files', 'exai_own', 'permissive', 'select', 'authenticated', 'using (' || c_mine || ')'),
          ('requests', 'exai_own', 'permissive', 'select', 'authenticated', 'using (owner = ' || c_sub || ')'),
          ('requests', 'exai_ask', 'permissive', 'insert', 'authenticated',
           'with check (owner = ' || c_sub || ' and state = ''queued'')'),
          -- What else a client could do with a state, the constraint requests_end_check refuses.
          ('requests', 'exai_cancel_or_read', 'permissive', 'update', 'authenticated',
           'using (owner = ' || c_sub || ') with check (owner = ' || c_sub
             || ' and state in (''cancelled'', ''done'', ''failed''))'),
          (case when not v_anonymous then t.table end, 'exai_named', 'restrictive', 'all', 'authenticated',
           'using (' || c_named || ')')
        ) w(of, name, kind, verb, role, condition)
       where t.schema = 'public' and not t.is_kept and w.of = t.table and w.role = any(v_roles)
       union all
      select 'exai_app', 'exai_app', format(
               'create policy exai_app on %s for %s to exai_app using (true)', t.name,
               case t.name when 'exai.alembic_version' then 'select' else 'all' end)
       where 'exai_app' = any(v_roles) and not t.is_part
    loop
      v_text := md5(p.text);
      continue when exists (
        select from pg_policy x
         where x.polrelid = t.oid and x.polname = p.name and obj_description(x.oid, 'pg_policy') = v_text);
      execute format('drop policy if exists %I on %s', p.name, t.name);
      execute p.text;
      execute format('comment on policy %I on %s is %L', p.name, t.name, v_text);
    end loop;
  end loop;

  for t in
    select f.oid::regprocedure::text as name, n.nspname::text as schema, f.proname::text as function
      from pg_proc f join pg_namespace n on n.oid = f.pronamespace
     where n.nspname in ('exai', 'monitoring')
        or (n.nspname = 'public' and f.proname in ('cleanup_orphaned_files', 'exai_page'))
  loop
    execute format('revoke all on routine %s from %s', t.name, v_everybody);
    for p in
      select r.role from unnest(v_roles) r(role)
       where (r.role = 'exai_app' and t.function not in ('grant_access_v1', 'announce_v1'))
          or (r.role = 'authenticated' and t.function in ('exai_page', 'shared_page_v1'))
          or (r.role = 'service_role' and (t.schema = 'monitoring' or t.function = 'cleanup_orphaned_files'))
    loop
      execute format('grant execute on routine %s to %I', t.name, p.role);
    end loop;
  end loop;
  return v_roles;
end
$$
