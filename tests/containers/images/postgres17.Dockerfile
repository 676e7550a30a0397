ARG BASE
FROM ${BASE}
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends postgresql-17 && rm -rf /var/lib/postgresql
COPY postgres-entrypoint.sh /entrypoint.sh
ENV LANG=C.UTF-8 PATH=/usr/lib/postgresql/17/bin:$PATH PGDATA=/var/lib/postgresql/data
RUN install -d -o postgres -g postgres /var/lib/postgresql/data
VOLUME /var/lib/postgresql/data
STOPSIGNAL SIGINT
EXPOSE 5432
ENTRYPOINT ["sh", "/entrypoint.sh"]
CMD ["postgres"]
