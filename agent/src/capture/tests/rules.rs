//! The rules, as `nft` reads them.

use super::ground::{Ground, SERVICE, at};
use super::proxy::pod_with;

/// For IPv4. Names of chains and sets are the order of what happens.
const RULES: &str = "\
table ip weir_test {
flags owner
set destinations {
type ipv4_addr . inet_service
elements = { 10.91.0.80 . 80 }
}
set ports {
type inet_service
elements = { 8080, 9090 }
}
chain out {
type nat hook output priority -100; policy accept;
meta mark 0x00003057 return
ct mark 0x00003052 return
ip daddr 127.0.0.0/8 return
tcp flags syn / fin,syn,rst,ack ip daddr . tcp dport @destinations counter packets 0 bytes 0 redirect to :15081
}
chain guard {
type filter hook input priority filter; policy accept;
ct status dnat accept
tcp dport 15081 counter packets 0 bytes 0 reject with tcp reset
tcp dport 15086 counter packets 0 bytes 0 reject with tcp reset
}
chain pre {
type nat hook prerouting priority dstnat; policy accept;
meta mark 0x00003057 return
tcp flags syn / fin,syn,rst,ack tcp dport @ports counter packets 0 bytes 0 redirect to :15086
}
}
";

/// What open connections need. The `N` at the end of its name is chance.
const LASTING: &str = "\
table ip weir_test_open_N {
flags owner
chain open {
type nat hook output priority -100; policy accept;
ct status dnat accept
}
chain mark {
type filter hook prerouting priority mangle; policy accept;
meta mark 0x00003057 ct mark set 0x00003052
}
chain reply {
type route hook output priority mangle; policy accept;
ct mark 0x00003052 meta mark set 0x00003052
}
}
";

#[test]
fn the_rules_are_these() {
    let Some(ground) = Ground::make() else { return };
    let running = ground.capture();
    let mut proxy = running.proxy();
    let services = SERVICE.map(|address| at(address, 80));
    let _told = proxy.capture(pod_with(&services, &[8080, 9090])).unwrap();
    let rules: String = ground
        .pod
        .rules()
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .map(|line| match line.split_once("_open_") {
            Some((table, _)) => format!("{table}_open_N {{\n"),
            None => format!("{line}\n"),
        })
        .collect();
    let ipv6 = RULES
        .replace("table ip ", "table ip6 ")
        .replace("ipv4_addr", "ipv6_addr")
        .replace("10.91.0.80", "fd91::80")
        .replace("127.0.0.0/8", "::1")
        .replace("ip daddr", "ip6 daddr");
    let lasting = LASTING.replace("table ip ", "table ip6 ");
    assert_eq!(rules, format!("{LASTING}{lasting}{RULES}{ipv6}"));
}
