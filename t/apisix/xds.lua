-- What APISIX does with `config_provider: xds`: the same calls, in the same phases and processes, the same order of reads.
local ffi = require "ffi"
local cjson = require "cjson.safe"
local process = require "ngx.process"
local schema = require "schema"

ffi.cdef [[
void initial(void *config_zone, void *version_zone);
void *ngx_http_lua_ffi_shdict_udata_to_zone(void *zone_udata);
void *ngx_meta_lua_ffi_shdict_udata_to_zone(void *zone_udata);
int usleep(unsigned int usec);
]]

local _M = {}

-- Those that APISIX watches in http, in this order.
local directories = {
    "/routes", "/services", "/upstreams", "/consumers", "/consumer_groups", "/ssls", "/global_rules", "/plugin_configs",
    "/plugin_metadata", "/protos", "/secrets", "/plugins",
}

local latest_version
local objects = {}
local passes = 0

local function udata_to_zone(dict)
    local ok, of = pcall(function() return ffi.C.ngx_http_lua_ffi_shdict_udata_to_zone end)
    if not ok then
        of = ffi.C.ngx_meta_lua_ffi_shdict_udata_to_zone
    end
    return ffi.cast("void *", of(dict[1]))
end

-- Stock nginx has no privileged agent: there the first worker is it.
local function is_agent()
    if _M.has_agent then
        return process.type() == "privileged agent"
    end
    return ngx.worker.id() == 0
end

local function load_library()
    for element in package.cpath:gmatch("[^;]+") do
        local path = (element:match("(.*/)") or "") .. "libxds.so"
        local file = io.open(path)
        if file then
            file:close()
            return ffi.load(path)
        end
    end
    error("can not load libxds.so from " .. package.cpath)
end

local function start_library()
    -- A local, as in APISIX: the next collection closes the library.
    local library = load_library()
    library.initial(udata_to_zone(ngx.shared["xds-config"]), udata_to_zone(ngx.shared["xds-config-version"]))
end

local function fetch_version()
    local version = ngx.shared["xds-config-version"]:get("version")
    if version then
        latest_version = version
    end
end

local function sync(self)
    if self.version == latest_version then
        return true
    end
    local dict = ngx.shared["xds-config"]
    local keys = dict:get_keys(0)
    if #keys == 0 then
        return false, "no keys"
    end
    self.values, self.by_id = {}, {}
    for _, key in ipairs(keys) do
        if key:sub(1, #self.directory) == self.directory then
            local text = dict:get(key)
            local object, err = cjson.decode(text or "")
            if type(object) ~= "table" then
                ngx.log(ngx.ERR, "invalid conf of [", key, "]: ", err or text)
            else
                local ok, reason = schema.check(self.directory, object)
                if not ok then
                    ngx.log(ngx.ERR, "failed to check the conf of [", key, "] err: ", reason, ": ", text)
                else
                    if not object.id then
                        object.id = key:sub(#self.directory + 2)
                        if self.directory ~= "/consumers" then
                            ngx.log(ngx.WARN, "the id of [", key, "] is nil, use the id: ", object.id)
                        end
                    end
                    self.values[#self.values + 1] = { key = key, value = object, version = latest_version }
                    self.by_id[tostring(object.id)] = object
                end
            end
        end
    end
    self.version = latest_version
    passes = passes + 1
    return true
end

local function follow(premature, self)
    if premature then
        return
    end
    local told
    while not ngx.worker.exiting() do
        local ok, done, err = pcall(sync, self)
        if not ok or not done then
            err = ok and err or done
            if told ~= err then
                ngx.log(ngx.ERR, "failed to fetch data from xds, ", err, ", ", self.directory)
                told = err
            end
            ngx.sleep(0.5)
        else
            ngx.sleep(0.1)
        end
    end
end

function _M.init()
    _M.has_agent = process.enable_privileged_agent(512)
end

function _M.init_worker()
    if is_agent() then
        start_library()
        collectgarbage()
        collectgarbage()
    end
    ngx.timer.every(1, fetch_version)
    for _, directory in ipairs(directories) do
        local self = { directory = directory, values = {}, by_id = {} }
        while true do
            fetch_version()
            if latest_version then
                break
            end
            ffi.C.usleep(1000)
        end
        local ok, done, err = pcall(sync, self)
        if not ok or not done then
            ngx.log(ngx.ERR, "failed to fetch data from xds ", ok and err or done, ", ", directory)
        end
        ngx.timer.at(0, follow, self)
        objects[directory] = self
    end
end

-- The objects of a directory.
function _M.all(directory)
    return objects[directory].values
end

-- One object of a directory.
function _M.get(directory, id)
    return objects[directory].by_id[tostring(id)]
end

function _M.status()
    return { version = latest_version, passes = passes, pid = ngx.worker.pid(), agent = is_agent() }
end

return _M
