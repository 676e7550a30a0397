ARG BASE
FROM ${BASE}
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends valkey-server valkey-tools \
 && ln -s /usr/bin/valkey-server /usr/local/bin/redis-server && ln -s /usr/bin/valkey-cli /usr/local/bin/redis-cli
WORKDIR /data
VOLUME /data
EXPOSE 6379
COPY valkey-entrypoint.sh /entrypoint.sh
ENTRYPOINT ["sh", "/entrypoint.sh"]
CMD ["redis-server"]
