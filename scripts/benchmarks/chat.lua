-- What wrk sends: the request in BENCH_BODY, with the header that BENCH_HEADER may hold. Its one
-- line of output is JSON.
wrk.method = "POST"
wrk.body = os.getenv("BENCH_BODY")
wrk.headers["content-type"] = "application/json"
local name, value = string.match(os.getenv("BENCH_HEADER") or "", "^([^:]+): (.+)$")
if name then
  wrk.headers[name] = value
end

function done(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format(
    '\n{"requests": %d, "failed": %d, "rate": %f, "p50_ms": %f, "p99_ms": %f}\n',
    summary.requests, failed, summary.requests / (summary.duration / 1e6),
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
