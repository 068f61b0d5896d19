//! Whether this host can do the agent's work: in full, in part, or not, and how to mend it.
//!
//! One module for each subject, in two halves: reading facts from the host, and judging them. The
//! judges are pure, so every sentence has a test without a host that is broken that way. Promises:
//! every look is bounded in time; nothing on the host is changed (what is tried out lives in a
//! namespace or a nameless file of its own and is gone afterwards); works with and without a
//! running agent, and says what it could not see. Deliberately without repairing anything.

mod cgroups;
mod clock;
mod containerd;
mod discovery;
mod disk;
mod facts;
mod finding;
mod forwarding;
mod images;
mod init;
pub(crate) mod kernel;
mod kubelet;
mod limits;
mod namespaces;
mod oci_runtime;
mod sockets;

pub use facts::Facts;
pub use finding::{Assessment, Finding, Works};

/// What is true of the host, judged.
pub fn judge(facts: &Facts) -> Assessment {
    let mut findings = kernel::judge(&facts.kernel);
    findings.extend(cgroups::judge(&facts.cgroups));
    findings.extend(namespaces::judge(&facts.namespaces));
    findings.extend(containerd::judge(&facts.containerd));
    findings.extend(oci_runtime::judge(&facts.oci_runtime, facts.cgroups.layout));
    findings.extend(init::judge(&facts.init));
    findings.extend(limits::judge(&facts.limits, facts.cgroups.layout));
    findings.extend(forwarding::judge(&facts.forwarding));
    findings.extend(disk::judge(&facts.disk));
    findings.extend(clock::judge(&facts.clock));
    findings.extend(sockets::judge(&facts.sockets));
    findings.extend(discovery::judge(&facts.discovery));
    findings.extend(images::judge(&facts.images));
    findings.extend(kubelet::judge(&facts.kubelet, &facts.containerd));
    Assessment::of(findings)
}
