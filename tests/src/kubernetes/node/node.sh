#!/usr/bin/env bash
# A node, in two acts. The outer one has a network of its own, and is otherwise in the machine's namespaces: it lays the
# node's cable and makes its cgroups. The inner one is the node's first process, in namespaces of every kind: with it
# ends all that runs in the node, and all that was mounted there.
#   node.sh DIRECTORY NUMBER NODES HUB GROUP PROGRAMS PROXY-MODE
#     HUB       a process in the network that the cable leads to
#     GROUP     name of the node's cgroups
#     PROGRAMS  directory with kubelet and its like
# In DIRECTORY, n1.cgroups and so on name what must be removed once the node has ended, n1-kubelet.log and so on are what
# its programs say, images/*.tar are given to containerd, and api.ready lets kubelets begin.
set -euo pipefail
umask 022
directory=$1 n=$2 nodes=$3 hub=$4 group=$5 programs=$6 proxy_mode=$7
address=10.89.0.$((10 + n))

# The machine's cgroup hierarchies: v2 alone, or names of those of v1, with v2 as `unified` beside them.
hierarchies() {
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then echo v2; else
    awk '$3 ~ /^cgroup2?$/ {n = split($2, a, "/"); print a[n]}' /proc/mounts | sort -u
  fi
}

# ---------------------------------------------------------------- outside

make_cgroups() {
  local h parent c f
  for h in $(hierarchies); do
    if [ "$h" = v2 ]; then
      parent=/sys/fs/cgroup
      for c in $(cat $parent/cgroup.controllers); do echo "+$c" >$parent/cgroup.subtree_control || true; done
    else
      # A process may be confined already: a node stays in what confines the test.
      parent=
      [ "$h" = unified ] || parent=$(sed -n "s/^[0-9]*:\(name=\)\?$h:\(.*\)/\2/p" /proc/self/cgroup)
      parent=/sys/fs/cgroup/$h${parent%/}
    fi
    echo "$parent/$group" >>"$directory/n$n.cgroups"
    mkdir "$parent/$group"
    if [ "$h" = cpuset ]; then # a new one allows nothing, and takes no process
      for f in cpuset.cpus cpuset.mems; do cat "$parent/$f" >"$parent/$group/$f"; done
    fi
    echo $$ >"$parent/$group/cgroup.procs"
  done
}

lay_cable() {
  local other f
  ip link set lo up
  ip link add eth0 type veth peer name "n$n" netns "$hub"
  nsenter --net="/proc/$hub/ns/net" ip link set "n$n" master cable up
  ip addr add "$address/24" dev eth0
  ip link set eth0 up
  ip route add default via 10.89.0.1
  for other in $(seq "$nodes"); do
    [ "$other" = "$n" ] || ip route add "10.88.$other.0/24" via "10.89.0.$((10 + other))"
  done
  echo 1 >/proc/sys/net/ipv4/ip_forward
  for f in all default; do echo 0 >"/proc/sys/net/ipv4/conf/$f/rp_filter"; done
}

if [ $$ != 1 ]; then
  make_cgroups
  lay_cable
  exec unshare --fork --kill-child --pid --mount --uts --ipc --cgroup --propagation private bash "$0" "$@"
fi

# ---------------------------------------------------------------- inside

hostname "n$n"
mount -t proc proc /proc
mount -t sysfs sysfs /sys

# The same cgroup hierarchies as the machine's, from the node's own groups downwards.
if [ "$(hierarchies)" = v2 ]; then
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
  kinds=$(hierarchies)
  mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  for h in $kinds; do
    mkdir "/sys/fs/cgroup/$h"
    case $h in
      unified) mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified ;;
      systemd) mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd ;;
      *) mount -t cgroup -o "$h" cgroup "/sys/fs/cgroup/$h" ;;
    esac
  done
fi
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  # A group of v2 that hands out controllers has no processes itself.
  mkdir /sys/fs/cgroup/node
  echo 0 >/sys/fs/cgroup/node/cgroup.procs
  for c in $(cat /sys/fs/cgroup/cgroup.controllers); do echo "+$c" >/sys/fs/cgroup/cgroup.subtree_control; done
fi

# What a node writes goes into memory, at the paths where every node has it.
mount -t tmpfs -o mode=755 tmpfs /run
for d in etc opt var; do
  mkdir -p "/run/weir/upper/$d" "/run/weir/work/$d"
  mount -t overlay -o "lowerdir=/$d,upperdir=/run/weir/upper/$d,workdir=/run/weir/work/$d" overlay "/$d"
done
for d in containerd kubelet; do
  mkdir -p "/run/weir/$d" "/var/lib/$d"
  mount --bind "/run/weir/$d" "/var/lib/$d"
done
mkdir -p /run/netns /run/lock /var/log/pods /var/log/containers /etc/cni/net.d /etc/containerd /etc/kubernetes /opt/cni
ln -sfn "$programs" /opt/cni/bin
mount --make-rshared /
# kubelet sets these for the whole machine: it is shown the values that it wants instead.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  shown=/run/weir/${setting//\//-}
  echo "${setting#*=}" >"$shown"
  mount --bind "$shown" "/proc/sys/${setting%%=*}"
done

echo "nameserver 10.96.0.10" >/etc/resolv.conf
: >/etc/kubernetes/resolv.conf # pods that ask the node's own servers ask nobody
printf '127.0.0.1 localhost\n%s n%s\n' "$address" "$n" >/etc/hosts
cat >/etc/cni/net.d/10-weir.conflist <<C
{"cniVersion": "1.0.0", "name": "weir", "plugins": [
  {"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local", "dataDir": "/run/cni",
    "ranges": [[{"subnet": "10.88.$n.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}, "backend": "nftables"}]}
C
# `restrict_oom_score_adj`: in a container without CAP_SYS_RESOURCE nobody may go below the score that they were given.
cat >/etc/containerd/config.toml <<C
version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "weir.test/pause:1"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "$programs/runc"
SystemdCgroup = false
C
cat >/etc/kubernetes/kubelet.yaml <<C
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $directory/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $directory/pki/kubelet-n$n.crt
tlsPrivateKeyFile: $directory/pki/kubelet-n$n.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
resolvConf: /etc/kubernetes/resolv.conf
serializeImagePulls: false
# The machine's disk and memory are not this node's: how full they are is no reason to end its pods.
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%"}
C
cat >/etc/kubernetes/proxy.yaml <<C
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: $proxy_mode
bindAddress: 0.0.0.0
hostnameOverride: n$n
clusterCIDR: 10.88.0.0/16
clientConnection: {kubeconfig: $directory/system-kube-proxy.kubeconfig}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
C

keep() { # NAME COMMAND…: again whenever it ends
  local name=$1
  shift
  while :; do
    "$@" >>"$directory/n$n-$name.log" 2>&1 </dev/null &
    echo $! >"/run/weir/$name.pid"
    wait $! || true
    echo "--- $name ended, and is started again" >>"$directory/n$n-$name.log"
    sleep 0.5
  done
}
export PATH=$programs:$PATH
keep containerd containerd &
until ctr version >/dev/null 2>&1; do sleep 0.1; done
for image in "$directory"/images/*.tar; do ctr -n k8s.io images import --local "$image" >/dev/null; done
until [ -e "$directory/api.ready" ]; do sleep 0.05; done
keep kubelet kubelet --config /etc/kubernetes/kubelet.yaml --kubeconfig "$directory/system-node-n$n.kubeconfig" \
  --hostname-override "n$n" --node-ip "$address" &
keep kube-proxy kube-proxy --config /etc/kubernetes/proxy.yaml &
while :; do wait || true; done
