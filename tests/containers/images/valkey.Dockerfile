ARG BASE
FROM ${BASE}
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends valkey-server valkey-tools
WORKDIR /data
VOLUME /data
EXPOSE 6379
COPY valkey-entrypoint.sh /entrypoint.sh
ENTRYPOINT ["sh", "/entrypoint.sh"]
CMD ["valkey-server"]
