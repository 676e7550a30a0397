-- What a text is searched by, in its order. form says what a unit is: a word, or a part of one of several (fooBar, utf8); the
-- whole of such a word, at the places of its first and last part; of scripts that put no spaces between words each pair of
-- neighbouring letters, and the last letter alone (tail). chunk: the same for all units of one word.
-- Letters, digits and marks make words; everything else separates them. Encoded data is cut after its first 250 characters,
-- a word after 128.
create or replace function exai.units_v1(p_text text)
returns table (place bigint, chunk bigint, word text, form text)
language plpgsql immutable parallel safe rows 300
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  c_data constant text := '[A-Za-z0-9+/_=-]{250}';
  c_together constant text collate "C" :=
    E'[\u0E01-\u0E3A\u0E40-\u0E4E\u0E81-\u0EBD\u0EC0-\u0ECE\u0EDC-\u0EDF\u1000-\u103F\u1050-\u108F\u109A-'
    '\u109D\u1100-\u11FF\u1780-\u17D3\u17D7\u17DC-\u17DD\u1950-\u19C9\u1A20-\u1A7C\u1B00-\u1B4C\u3005-\u3007'
    '\u3021-\u302F\u3031-\u3035\u3038-\u303C\u3041-\u309A\u309D-\u309F\u30A1-\u30FA\u30FC-\u318E\u31A0-\u31BF'
    '\u31F0-\u31FF\u3400-\u4DBF\u4E00-\u9FFF\uA960-\uA97C\uA980-\uA9C0\uA9E0-\uA9EF\uA9FA-\uA9FE\uAA60-\uAA76'
    '\uAA7A-\uAA7F\uAC00-\uD7FB\uF900-\uFAFF\U00016FE0-\U00018CFF\U0001AFF0-\U0001B2FF\U00020000-\U0003FFFD]';
  v_text text collate "C" := p_text;
  v_is_ascii boolean;
  v_has_together boolean;
begin
  if octet_length(v_text) > 1000 and v_text ~ (c_data || c_data || c_data) then
    v_text := regexp_replace(v_text, '(' || c_data || ')' || c_data || c_data || '[A-Za-z0-9+/_=-]*', '\1 ', 'g');
  end if;
  v_text := exai.fold_v1(v_text, true);
  v_is_ascii := octet_length(v_text) = length(v_text);
  if v_is_ascii then
    -- Single spaces, of which there are most, are left as they are: that takes half the time.
    v_text := regexp_replace(regexp_replace(v_text, E'[^a-z0-9\x01 ]+', ' ', 'g'), '  +', ' ', 'g');
  else
    v_text := regexp_replace(
      v_text,
      E'[\x02-/:-`{-\x7F\u0080-\u00A9\u00AB-\u00B1\u00B4\u00B6-\u00B8\u00BB\u00BF\u00D7\u00F7\u02C2-\u02C5\u02D2'
      '-\u02DF\u02E5-\u02EB\u02ED\u02EF-\u02FF\u0375\u037E\u0384-\u0385\u0387\u03F6\u0482\u055A-\u055F\u0589-'
      '\u058F\u05BE\u05C0\u05C3\u05C6\u05F3-\u060F\u061B-\u061F\u066A-\u066D\u06D4\u06DD-\u06DE\u06E9\u06FD-'
      '\u06FE\u0700-\u070F\u07F6-\u07F9\u07FE-\u07FF\u0830-\u083E\u085E\u0888\u0890-\u0891\u08E2\u0964-\u0965'
      '\u0970\u09F2-\u09F3\u09FA-\u09FB\u09FD\u0A76\u0AF0-\u0AF1\u0B70\u0BF3-\u0BFA\u0C77\u0C7F\u0C84\u0D4F'
      '\u0D79\u0DF4\u0E3F\u0E4F\u0E5A-\u0E5B\u0F01-\u0F17\u0F1A-\u0F1F\u0F34\u0F36\u0F38\u0F3A-\u0F3D\u0F85'
      '\u0FBE-\u0FC5\u0FC7-\u0FDA\u104A-\u104F\u109E-\u109F\u10FB\u1360-\u1368\u1390-\u1399\u1400\u166D-\u166E'
      '\u1680\u169B-\u169C\u16EB-\u16ED\u1735-\u1736\u17D4-\u17D6\u17D8-\u17DB\u1800-\u180A\u180E\u1940-\u1945'
      '\u19DE-\u19FF\u1A1E-\u1A1F\u1AA0-\u1AA6\u1AA8-\u1AAD\u1B5A-\u1B6A\u1B74-\u1B7E\u1BFC-\u1BFF\u1C3B-\u1C3F'
      '\u1C7E-\u1C7F\u1CC0-\u1CC7\u1CD3\u1FBD\u1FBF-\u1FC1\u1FCD-\u1FCF\u1FDD-\u1FDF\u1FED-\u1FEF\u1FFD-\u206F'
      '\u207A-\u207E\u208A-\u208E\u20A0-\u20C0\u2100-\u2101\u2103-\u2106\u2108-\u2109\u2114\u2116-\u2118\u211E-'
      '\u2123\u2125\u2127\u2129\u212E\u213A-\u213B\u2140-\u2144\u214A-\u214D\u214F\u218A-\u244A\u249C-\u24E9'
      '\u2500-\u2775\u2794-\u2BFF\u2CE5-\u2CEA\u2CF9-\u2CFC\u2CFE-\u2CFF\u2D70\u2E00-\u2E2E\u2E30-\u3004\u3008-'
      '\u3020\u3030\u3036-\u3037\u303D-\u303F\u309B-\u309C\u30A0\u30FB\u3190-\u3191\u3196-\u319F\u31C0-\u31E3'
      '\u3200-\u321E\u322A-\u3247\u3250\u3260-\u327F\u328A-\u32B0\u32C0-\u33FF\u4DC0-\u4DFF\uA490-\uA4C6\uA4FE-'
      '\uA4FF\uA60D-\uA60F\uA673\uA67E\uA6F2-\uA716\uA720-\uA721\uA789-\uA78A\uA828-\uA82B\uA836-\uA839\uA874-'
      '\uA877\uA8CE-\uA8CF\uA8F8-\uA8FA\uA8FC\uA92E-\uA92F\uA95F\uA9C1-\uA9CD\uA9DE-\uA9DF\uAA5C-\uAA5F\uAA77-'
      '\uAA79\uAADE-\uAADF\uAAF0-\uAAF1\uAB5B\uAB6A-\uAB6B\uABEB\uE000-\uF8FF\uFB29\uFBB2-\uFBC2\uFD3E-\uFD4F'
      '\uFDCF\uFDFC-\uFDFF\uFE10-\uFE19\uFE30-\uFE6B\uFEFF-\uFF0F\uFF1A-\uFF20\uFF3B-\uFF40\uFF5B-\uFF65\uFFE0-'
      '\uFFFD\U00010100-\U00010102\U00010137-\U0001013F\U00010179-\U00010189\U0001018C-\U000101FC\U0001039F'
      '\U000103D0\U0001056F\U00010857\U00010877-\U00010878\U0001091F\U0001093F\U00010A50-\U00010A58\U00010A7F'
      '\U00010AC8\U00010AF0-\U00010AF6\U00010B39-\U00010B3F\U00010B99-\U00010B9C\U00010EAD\U00010F55-\U00010F59'
      '\U00010F86-\U00010F89\U00011047-\U0001104D\U000110BB-\U000110C1\U000110CD\U00011140-\U00011143\U00011174'
      '-\U00011175\U000111C5-\U000111C8\U000111CD\U000111DB\U000111DD-\U000111DF\U00011238-\U0001123D\U000112A9'
      '\U0001144B-\U0001144F\U0001145A-\U0001145D\U000114C6\U000115C1-\U000115D7\U00011641-\U00011643\U00011660'
      '-\U0001166C\U000116B9\U0001173C-\U0001173F\U0001183B\U00011944-\U00011946\U000119E2\U00011A3F-\U00011A46'
      '\U00011A9A-\U00011A9C\U00011A9E-\U00011AA2\U00011C41-\U00011C45\U00011C70-\U00011C71\U00011EF7-'
      '\U00011EF8\U00011FD5-\U00011FFF\U00012470-\U00012474\U00012FF1-\U00012FF2\U00013430-\U00013438\U00016A6E'
      '-\U00016A6F\U00016AF5\U00016B37-\U00016B3F\U00016B44-\U00016B45\U00016E97-\U00016E9A\U00016FE2\U0001BC9C'
      '\U0001BC9F-\U0001BCA3\U0001CF50-\U0001D164\U0001D16A-\U0001D16C\U0001D173-\U0001D17A\U0001D183-'
      '\U0001D184\U0001D18C-\U0001D1A9\U0001D1AE-\U0001D241\U0001D245\U0001D300-\U0001D356\U0001D6C1\U0001D6DB'
      '\U0001D6FB\U0001D715\U0001D735\U0001D74F\U0001D76F\U0001D789\U0001D7A9\U0001D7C3\U0001D800-\U0001D9FF'
      '\U0001DA37-\U0001DA3A\U0001DA6D-\U0001DA74\U0001DA76-\U0001DA83\U0001DA85-\U0001DA8B\U0001E14F\U0001E2FF'
      '\U0001E95E-\U0001E95F\U0001ECAC\U0001ECB0\U0001ED2E\U0001EEF0-\U0001FBFF\U000E0001-\U000E007F\U000F0000-'
      '\U0010FFFD]+',
      ' ', 'g');
  end if;
  v_has_together := not v_is_ascii and v_text ~ c_together;
  if v_has_together then
    v_text := regexp_replace(v_text, '(' || c_together || '+)', ' \1 ', 'g');
  elsif position(E'\x01' in v_text) = 0 then
    return query
    select w.n, w.n, left(w.word, 128), 'word'
      from string_to_table(btrim(v_text, ' '), ' ') with ordinality w(word, n)
     where w.word <> '';
    return;
  end if;
  return query
  with chunks as (
    select w.n, v_has_together and w.word ~ c_together as is_together,
           case when w.word ~ E'(?:\x01[^\x01]+){10}' or w.word ~ E'^[0-9a-f\x01]{20,}$'
                then replace(w.word, E'\x01', '') else w.word end as word
      from string_to_table(v_text, ' ') with ordinality w(word, n)
     where w.word <> ''),
  letters as (
    select c.n, p.i, c.is_together, p.word,
           case when c.is_together then lead(p.word) over (partition by c.n order by p.i) end as next
      from chunks c
     cross join lateral string_to_table(c.word, case when c.is_together then null else E'\x01' end)
           with ordinality p(word, i)
     where p.word <> ''),
  pieces as (
    select row_number() over (order by l.n, l.i) as place, l.n, left(l.word || coalesce(l.next, ''), 128) as word,
           case when not l.is_together then 'word' when l.next is null then 'tail' else 'pair' end as form
      from letters l)
  select p.place, p.n, p.word, p.form from pieces p
   union all
  select p.place, c.n, left(replace(c.word, E'\x01', ''), 128), 'whole'
    from chunks c
    join (select x.n, min(x.place) as first, max(x.place) as last from pieces x group by x.n) e on e.n = c.n
   cross join lateral (values (e.first), (e.last)) p(place)
   where not c.is_together and c.word ~ E'[^\x01]\x01[^\x01]';
end
$$
