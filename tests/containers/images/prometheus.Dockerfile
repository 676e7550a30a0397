ARG BASE
FROM ${BASE}
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends prometheus && install -d -o nobody /prometheus
VOLUME /prometheus
USER nobody
ENTRYPOINT ["prometheus"]
