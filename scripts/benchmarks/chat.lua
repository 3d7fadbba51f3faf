-- What wrk sends: the chat request in BENCH_BODY. Its one line of output is JSON.
wrk.method = "POST"
wrk.body = os.getenv("BENCH_BODY")
wrk.headers["content-type"] = "application/json"
if os.getenv("BENCH_KEY") then
  wrk.headers["authorization"] = "Bearer " .. os.getenv("BENCH_KEY")
end

function done(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format(
    '\n{"requests": %d, "failed": %d, "rate": %f, "p50_ms": %f, "p99_ms": %f}\n',
    summary.requests, failed, summary.requests / (summary.duration / 1e6),
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
