# make            builds build/ngx_amesh_module.so for the nginx that is installed, and build/libxds.so for Apache APISIX
# make run        starts a demo mesh with it
# make run-lua    the same with Lua routing and balancing, on OpenResty or an nginx with its Lua module
# make test       passes every suite
# make yard       real istiod, captured traffic, judged by what real Envoy answered
# make test-envoy the same configuration and requests for real Envoy and for nginx; nothing but what is listed differs
# make test-envoy-lua  the same cases with nginx's Lua routing and balancing
# make bench      beside stock nginx and Envoy
# make bench-etcd the etcd face beside a real etcd
# make ctl        builds build/ameshctl, which checks routes without an nginx
# make install    the module, the snippets and the Lua library, below DESTDIR
# make deps       installs what all of these need on Debian 12; Rust is presupposed
#
# For another nginx or OpenResty, configured:  make NGINX_SOURCE_DIR=… [NGINX_BUILD_DIR=…/objs]
# For nginx 1.28, as in the crate nginx-src:   make vendored

BUILD      := build
PROFILE    ?= release
TARGET     ?= $(or $(CARGO_TARGET_DIR),target)
CARGO      ?= cargo
CARGOFLAGS ?=
PYTHON     ?= python3
NGINX      ?= nginx

# A module for tests does not take the place of the one to install.
OUT    := $(BUILD)$(if $(filter-out release,$(PROFILE)),/$(PROFILE))
MODULE := $(OUT)/ngx_amesh_module.so

ifdef NGINX_SOURCE_DIR
TREE      := $(abspath $(NGINX_SOURCE_DIR))
TREE_OBJS := $(abspath $(or $(NGINX_BUILD_DIR),$(NGINX_SOURCE_DIR)/objs))
tree:
else
TREE      := $(CURDIR)/$(BUILD)/nginx
TREE_OBJS := $(TREE)/objs
tree: deps
	@NGINX=$(NGINX) .ci/nginx-tree debian $(TREE)
endif
FOR_TREE = NGINX_SOURCE_DIR=$(TREE) NGINX_BUILD_DIR=$(TREE_OBJS)

VENDORED      := $(CURDIR)/$(BUILD)/nginx-1.28
FOR_TESTS     := $(BUILD)/test-module
MODULES_PATH  ?= $(shell $(NGINX) -V 2>&1 | sed -n 's/.*--modules-path=\([^ ]*\).*/\1/p')
LUALIB_PATH   ?= /usr/local/share/lua/5.1
INCLUDE_PATH  ?= /usr/local/include
STREAM_MODULE ?= $(wildcard /usr/lib/nginx/modules/ngx_stream_module.so)

LUA_MODULES   ?= $(wildcard $(addprefix /usr/lib/nginx/modules/,ndk_http_module.so ngx_http_lua_module.so))

# To nginx this variable means sockets that it inherits.
unexport NGINX

.PHONY: all deps tree module libxds vendored-tree vendored test lint deny unit loom suites suites-vendored processes \
        processes-vendored run run-lua yard \
        test-envoy test-envoy-lua bench bench-etcd ctl install clean

all: module libxds

deps:
	@.ci/deps

module: tree
	$(FOR_TREE) $(CARGO) build $(CARGOFLAGS) -p ngx_amesh_module --profile $(PROFILE) --target-dir $(TARGET)
	@mkdir -p $(OUT)
	install -m 644 $(TARGET)/$(PROFILE)/libngx_amesh_module.so $(MODULE)

# Needs no nginx: what it calls of one it looks for when it is loaded.
libxds: deps
	$(CARGO) build $(CARGOFLAGS) -p amesh-libxds --profile $(PROFILE) --target-dir $(TARGET)
	@mkdir -p $(OUT)
	install -m 644 $(TARGET)/$(PROFILE)/libxds.so $(OUT)/libxds.so

vendored-tree: deps
	@.ci/nginx-tree vendored $(VENDORED)

# The same source for the other nginx, in a target directory of its own: bindings are generated per nginx.
vendored: vendored-tree
	$(MAKE) module NGINX_SOURCE_DIR=$(VENDORED) NGINX_BUILD_DIR=$(VENDORED)/objs TARGET=$(TARGET)/1.28 \
	  MODULE=$(OUT)/ngx_amesh_module-1.28.so

# One after the other, so that what is printed last is what ran last.
test:
	@set -e; for step in lint deny unit loom suites suites-vendored processes processes-vendored; do \
	  echo "== $$step"; $(MAKE) --no-print-directory $$step; done

lint: tree
	$(CARGO) fmt --all --check
	$(FOR_TREE) $(CARGO) clippy $(CARGOFLAGS) --workspace --all-targets --target-dir $(TARGET) -- -D warnings

# Licences and advisories: cargo install cargo-deny
deny:
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny check; \
	 else echo "cargo-deny is not installed: licences and advisories were not checked"; fi

# The second one wants protoc.
unit: deps
	$(CARGO) test $(CARGOFLAGS) --target-dir $(TARGET)
	$(CARGO) test $(CARGOFLAGS) --target-dir $(TARGET) -p etcd-client-tests

loom:
	RUSTFLAGS="--cfg loom" $(CARGO) test $(CARGOFLAGS) -p amesh-shm --test loom --release --target-dir $(TARGET)/loom

suites: vendored-tree
	$(MAKE) module PROFILE=test-module
	TEST_NGINX_BINARY=$(NGINX) TEST_NGINX_LUA_MODULES="$(LUA_MODULES)" \
	TEST_NGINX_LOAD_MODULES="$(STREAM_MODULE) $(CURDIR)/$(FOR_TESTS)/ngx_amesh_module.so" prove -It/lib t/*.t

# This nginx has stream built in, and no Lua.
suites-vendored:
	$(MAKE) vendored PROFILE=test-module
	TEST_NGINX_LUA_MODULES= TEST_NGINX_BINARY=$(VENDORED)/objs/nginx \
	TEST_NGINX_LOAD_MODULES=$(CURDIR)/$(FOR_TESTS)/ngx_amesh_module-1.28.so prove -It/lib t/*.t

# What needs processes, signals, namespaces or control planes. With AGAIN=1 those that fail get a second chance: a machine
# that others use, too, may have been slow.
PYTEST_PROCESSES = MODULE=$(CURDIR)/$(FOR_TESTS)/ngx_amesh_module.so NGINX=$(NGINX) $(BUILD)/venv/bin/pytest -q t --ignore t/envoy
processes: $(BUILD)/venv/.done
	$(MAKE) module libxds PROFILE=test-module
	$(PYTEST_PROCESSES) $(if $(AGAIN),|| { echo "once more what failed:"; $(PYTEST_PROCESSES) --last-failed; })

# Tries, time-outs and protocols stand on the inside of nginx's upstream: what this nginx does there is looked at, too.
PYTEST_VENDORED = MODULE=$(CURDIR)/$(FOR_TESTS)/ngx_amesh_module-1.28.so NGINX=$(VENDORED)/objs/nginx \
  $(BUILD)/venv/bin/pytest -q t/test_resilience.py t/test_http2.py t/test_balancing.py
processes-vendored: $(BUILD)/venv/.done
	$(MAKE) vendored PROFILE=test-module
	$(PYTEST_VENDORED) $(if $(AGAIN),|| { echo "once more what failed:"; $(PYTEST_VENDORED) --last-failed; })

$(BUILD)/venv/.done: t/requirements.txt
	$(PYTHON) -m venv --clear $(BUILD)/venv
	$(BUILD)/venv/bin/pip install -q --disable-pip-version-check -r t/requirements.txt
	@touch $@

# Without a module from "make", the one that builds faster does.
run run-lua: deps
	@[ -f $(BUILD)/ngx_amesh_module.so ] || $(MAKE) module PROFILE=test-module
	@MODULE=$(firstword $(wildcard $(BUILD)/ngx_amesh_module.so) $(FOR_TESTS)/ngx_amesh_module.so) NGINX=$(NGINX) \
	  nginx-conf/demo/run.sh $(subst run,,$(subst run-,,$@))

yard:
	$(MAKE) module PROFILE=test-module
	MODULE=$(CURDIR)/$(FOR_TESTS)/ngx_amesh_module.so NGINX=$(NGINX) t/istio/run

test-envoy: $(BUILD)/venv/.done
	$(MAKE) module PROFILE=test-module
	MODULE=$(CURDIR)/$(FOR_TESTS)/ngx_amesh_module.so NGINX=$(NGINX) PYTEST=$(BUILD)/venv/bin/pytest t/envoy/run

# The cases again, with each request routed and balanced by Lua. Its connections are nginx's own, and so not looked at.
test-envoy-lua: $(BUILD)/venv/.done
	$(MAKE) module PROFILE=test-module
	AMESH_ENVOY_LUA=1 MODULE=$(CURDIR)/$(FOR_TESTS)/ngx_amesh_module.so NGINX=$(NGINX) PYTEST=$(BUILD)/venv/bin/pytest \
	  t/envoy/run -k "test_same_as_envoy and not connections/"

bench: module
	benches/run

bench-etcd: deps
	$(CARGO) build $(CARGOFLAGS) -p amesh-apisix --example etcd_watchers --release --target-dir $(TARGET)
	benches/etcd $(TARGET)/release/examples/etcd_watchers

ctl:
	$(CARGO) build $(CARGOFLAGS) -p amesh-ctl --profile $(PROFILE) --target-dir $(TARGET)
	@mkdir -p $(OUT)
	install -m 755 $(TARGET)/$(PROFILE)/ameshctl $(OUT)/ameshctl

install:
	@[ -f $(MODULE) ] || $(MAKE) module
	@[ -n "$(MODULES_PATH)" ] || { echo "$(NGINX) -V names no --modules-path: set MODULES_PATH" >&2; exit 1; }
	install -d $(DESTDIR)$(MODULES_PATH) $(DESTDIR)/etc/nginx/amesh
	install -m 644 $(MODULE) $(DESTDIR)$(MODULES_PATH)/
	install -m 644 nginx-conf/amesh/*.conf $(DESTDIR)/etc/nginx/amesh/
	install -d $(DESTDIR)$(LUALIB_PATH)/resty/amesh $(DESTDIR)$(INCLUDE_PATH)
	install -m 644 lualib/resty/amesh.lua $(DESTDIR)$(LUALIB_PATH)/resty/
	install -m 644 lualib/resty/amesh/*.lua $(DESTDIR)$(LUALIB_PATH)/resty/amesh/
	install -m 644 include/amesh.h $(DESTDIR)$(INCLUDE_PATH)/

clean:
	rm -rf $(BUILD) $(TARGET) t/servroot t/servroot_*
