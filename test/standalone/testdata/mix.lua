-- SPDX-License-Identifier: Apache-2.0
-- wrk: each request with another key or none; the server says whether it was meant.
local tags = {
  { "baseline", nil, nil },
  { os.getenv("WANT_A"), "baggage", "a=b,sidetrack=" .. os.getenv("KEY_A") },
  { "baseline", "x-sidetrack-key", "nobodys-key-at-all" },
  { os.getenv("WANT_B"), "tracestate", "vendor=1,sd-routing-key=" .. os.getenv("KEY_B") },
  { "baseline", "baggage", "a=b" },
  { os.getenv("WANT_A"), "X-Sidetrack-Key", os.getenv("KEY_A") },
}
local threads = {}
local n = 0
local bodies = { "", "x", string.rep("y", 1000), string.rep("z", 20000) }

function setup(thread)
  table.insert(threads, thread)
end

function init()
  wrong = 0
  math.randomseed(1)
end

function request()
  n = n + 1
  local t = tags[math.random(#tags)]
  local headers = { ["X-Expect"] = t[1], ["X-Number"] = tostring(n) }
  if t[2] then headers[t[2]] = t[3] end
  if n % 4 == 0 then
    return wrk.format("POST", nil, headers, bodies[math.random(#bodies)])
  end
  return wrk.format("GET", nil, headers)
end

function response(status, headers)
  if status ~= 200 or headers["X-Served-By"] ~= headers["X-Expect"] then
    wrong = wrong + 1
  end
end

function done(summary)
  local w = 0
  for _, t in ipairs(threads) do w = w + t:get("wrong") end
  local e = summary.errors
  print(string.format("result %d %d %d", summary.requests, w, e.connect + e.read + e.write + e.status + e.timeout))
end
