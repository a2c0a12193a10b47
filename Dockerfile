# Debian's own nginx with the module, built as "make" builds it anywhere. Build it from a checkout:
#
#     docker build -t amesh .
#     docker run --rm amesh nginx -t
FROM debian:12 AS build

RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates curl make && rm -rf /var/lib/apt/lists/*

# Debian 12's Rust is older than what Cargo.toml asks for.
ENV PATH=/root/.cargo/bin:$PATH
RUN curl --proto '=https' --tlsv1.2 -fsS https://sh.rustup.rs | sh -s -- -y -q --profile minimal

WORKDIR /src
# The packages change less often than the source.
COPY .ci .ci
RUN .ci/deps && rm -rf /var/lib/apt/lists/*

COPY . .
RUN CARGOFLAGS=--locked make && make install DESTDIR=/out

FROM debian:12

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends nginx libnginx-mod-stream ca-certificates \
    && rm -rf /var/lib/apt/lists/*

COPY --from=build /out/ /
# Debian's nginx.conf includes these, by number: stream comes before what uses it.
RUN echo 'load_module modules/ngx_amesh_module.so;' >/etc/nginx/modules-enabled/90-amesh.conf \
    && nginx -t

STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
