"""Configurations that several tests read."""

EVERYTHING = """
admin: {listen: 127.0.0.1:15000}
access_log:
  path: access.jsonl        # default: stdout
  connections: off
  requests: on
  query: true
outbound:
  listen: ["127.0.0.1:15001", "[::1]:15001"]
  control_socket: /run/pysidecar/hook.sock
  control_socket_mode: 0660
  transport: header
  when_away: wait:5s
  exclude: ["127.0.0.0/8", "::1/128", 10.0.0.53, {ports: [53, 8000-8001]}]
  connect_timeout: 500ms
  ejection_time: 0s
  idle_timeout: 1h
  header_timeout: 1.5s
  flush_timeout: 10m
  routes:
    - match: {destination: 10.0.0.0/8, ports: [5432, 8000-8999]}
      action: relay
      endpoints: [127.0.0.1:5433]
      balance: least_connections
    - match: {destination: [192.0.2.0/24, "2001:db8::/32"]}
      action: refuse
    - match: {destination: 10.1.0.0/16}
      action: requests
      protocol: auto
      detect_timeout: 2s
      undetected: refuse
  redirect: {listen: ['127.0.0.1:15002'], mark: null, uids: 1337, gids: [1, 2], cgroup: /a/b/}
inbound:
  mode: tproxy
  listen: ["127.0.0.1:15006", "[::1]:15006"]
  ports: [25, 8000-8999]
  exclude_ports: 8080
  application_address: [127.0.0.1, "::1"]
  preserve_source: true
  routes:
    - match: {ports: 25}
      endpoints: ["127.0.0.1:2525"]
services:
  orders:
    protocol: http
    endpoints: [10.0.0.7:8080, {address: "[fd00::8]:8080", weight: 2}]
    balance: least_requests
    timeout: 3s
    read_timeout: 4s
    idle_timeout: 5s
    connections: 10
    pending: 0
  orders-v2:
    protocol: http
    endpoints: [10.0.0.9:8080]
    balance: {ring_hash: {header: X-User}}
    circuit_breaker: {requests: 10000, retries: 5}
    rate_limit: {requests: 1000, per: 500ms, burst: 200}
    mirror: {to: orders, percent: 0.5}
    retries:
      attempts: 2
      # Quoted for readers of YAML 1.1, to whom it is a boolean.
      "on":
        [connect_failure, reset_before_request, reset_before_response, "503", 429, gateway_error]
      per_try_timeout: 500ms
      backoff: {base: 10ms, max: 250ms}
      budget: 25%
  "com.example.Orders:1.0": {protocol: bolt, balance: random}
  inventory: {protocol: dubbo, timeout: 0s}
  database: {protocol: tcp, endpoints: [10.0.0.5:5432]}
requests:
  - match:
      host: ["orders.*", "*.Example.com"]
      path_prefix: /v2/
      method: POST
      headers: {x-env: canary, x-debug: true, x-stage: [a, b]}
    services: {orders-v2: 10, orders: 90}
    rewrite:
      host: inner:81
      path_prefix: /
      set_headers: {x-by: "1"}
      remove_headers: cookie
      original_destination_header: x-original
    timeout: 1s
  - match: {path: /health}
    services: orders
    idempotent: true
    hedge: {after: 50ms}
    fault: {delay: {fixed: 200ms, percent: 10}, abort: {status: 503, percent: 0.25%}}
  - match: {service: "com.example.Orders:1.0", method: create}
    services: "com.example.Orders:1.0"
  - match: {service: com.example.*, version: "1.0", group: [blue, green]}
    services: inventory
listeners:
  - {listen: "127.0.0.1:12221", protocol: http, service: orders}
  - {listen: "127.0.0.1:12220", detect_timeout: 1s}
  - {listen: "[::1]:12219", protocol: tcp, service: database}
request_limits: {line_bytes: 4096, head_bytes: 16384, fields: 50, frame_bytes: 1048576}
manage_rules: true
rules_backend: iptables
workers: 3
drain_timeout: 2m
"""
