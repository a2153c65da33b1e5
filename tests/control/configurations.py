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
  routes:
    - match: {destination: 10.0.0.0/8, ports: [5432, 8000-8999]}
      action: relay
      endpoints: [127.0.0.1:5433]
      balance: least_connections
    - match: {destination: [192.0.2.0/24, "2001:db8::/32"]}
      action: refuse
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
manage_rules: true
rules_backend: iptables
workers: 3
drain_timeout: 2m
"""
