ARG BASE
FROM ${BASE}
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends pgbouncer postgresql-client-17
ENV PATH=/usr/sbin:$PATH
ENTRYPOINT ["pgbouncer"]
