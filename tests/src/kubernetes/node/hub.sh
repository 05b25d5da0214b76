#!/usr/bin/env bash
# The network of the control plane, which is also the cable between the nodes and their router: a bridge.
#   hub.sh DIRECTORY NODES
set -euo pipefail
directory=$1 nodes=$2
ip link set lo up
ip link add cable type bridge
ip addr add 10.89.0.1/24 dev cable
ip link set cable up
echo 1 >/proc/sys/net/ipv4/ip_forward
for n in $(seq "$nodes"); do ip route add "10.88.$n.0/24" via "10.89.0.$((10 + n))"; done
touch "$directory/hub.ready"
# The network lasts as long as a process in it.
exec sleep infinity
