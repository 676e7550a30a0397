-- After requests were inserted: refuses more than c_most queued ones of one owner, and wakes daemons that listen. With
-- the rights of the client, whose policies show it its own requests.
create or replace function exai.admit_requests_v1() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  c_most constant integer := 1000;
  v_owner text;
begin
  for v_owner in select distinct f.owner from fresh f loop
    if (select count(*) from (select from public.requests r where r.owner = v_owner and r.state = 'queued'
                               limit c_most + 1) q) > c_most then
      raise exception 'more than % requests are waiting', c_most
        using hint = 'Wait until some are answered, or cancel some.', errcode = '54000';
    end if;
  end loop;
  perform pg_notify('exai_requests', '');
  return null;
end
$$
