//! How the processes of a container run beside each other: priority, signals, order, restarts.

use super::{Agent, App, CapabilitySet, RestartPolicy, Ulimit};

/// How a process runs and is asked to end, as far as the manifest says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Conduct {
    /// `nice`, -20..=19; container-init's own when absent.
    pub nice: Option<i8>,
    /// `oomScoreAdj`, -999..=1000; container-init's own, which is 0, when absent.
    pub oom_score_adj: Option<i16>,
    /// `stopSignal` by number; absent, TERM, and for the app the image's.
    pub stop_signal: Option<u8>,
    /// `signalDelivery`.
    pub delivery: SignalDelivery,
}

/// Whom the signals of a process reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SignalDelivery {
    /// The process.
    #[default]
    Process,
    /// Its process group.
    Group,
    /// Every process of its session, and what descends from it.
    All,
}

impl SignalDelivery {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Process, Self::Group, Self::All];

    /// As in the manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "Process",
            Self::Group => "Group",
            Self::All => "All",
        }
    }
}

/// Whether an in-container agent is started again after it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentRestart {
    /// After which ends.
    pub policy: RestartPolicy,
    /// How often in a row at most; without an end when absent.
    pub max: Option<u32>,
}

/// What stands for another number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rewrite {
    /// What comes.
    pub from: u8,
    /// What goes on; for a signal 0 is none.
    pub to: u8,
}

impl Agent {
    /// The limits that it runs with: its own over the app's.
    pub fn limits(&self, app: &App) -> Vec<Ulimit> {
        let own = |limit: &&Ulimit| !self.ulimits.iter().any(|o| o.resource == limit.resource);
        let mut limits: Vec<Ulimit> = app.ulimits.iter().filter(own).copied().collect();
        limits.extend(&self.ulimits);
        limits
    }
}

impl App {
    /// Indices of the agents in an order in which each stands behind those that it waits for, and
    /// otherwise as they were written. Validation refuses circles; of one, nobody is in it.
    pub fn start_order(&self) -> Vec<usize> {
        let waits: Vec<&[usize]> = self.agents.iter().map(|a| a.after.as_slice()).collect();
        start_order(&waits)
    }

    /// What container-init needs beyond [`CapabilitySet::INIT`] to set what the manifest says, where
    /// the runtime has it to give: a lower nice value or `oom_score_adj` than its own, and limits
    /// above its own. The processes themselves do not get it.
    pub fn to_set_conduct(&self) -> CapabilitySet {
        let agents = self.agents.iter().map(|agent| &agent.conduct);
        let (mut nice, mut resource) = (false, false);
        for conduct in agents.chain([&self.conduct]) {
            nice |= conduct.nice.is_some();
            resource |= conduct.oom_score_adj.is_some();
        }
        resource |= self.agents.iter().any(|agent| !agent.ulimits.is_empty());
        let named = |name, wanted: bool| CapabilitySet::named(name).filter(|_| wanted);
        [named("SYS_NICE", nice), named("SYS_RESOURCE", resource)]
            .into_iter()
            .flatten()
            .fold(CapabilitySet::NONE, CapabilitySet::with)
    }
}

/// Everybody behind whom they wait for, else by index; who waits in a circle is left out, and who
/// waits for such a one.
pub(super) fn start_order(waits: &[&[usize]]) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::with_capacity(waits.len());
    let next = |order: &[usize]| {
        let free = |(index, waits): &(usize, &&[usize])| {
            !order.contains(index) && waits.iter().all(|other| order.contains(other))
        };
        waits.iter().enumerate().find(free).map(|(index, _)| index)
    };
    while let Some(index) = next(&order) {
        order.push(index);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_starts_behind_whom_they_wait_for_and_else_as_written() {
        for (waits, order) in [
            (vec![&[][..], &[0], &[1]], vec![0, 1, 2]),
            (vec![&[2][..], &[], &[1]], vec![1, 2, 0]),
            (vec![&[][..], &[], &[]], vec![0, 1, 2]),
            (vec![&[1][..], &[0], &[]], vec![2]),
            (vec![&[0][..]], vec![]),
        ] {
            assert_eq!(start_order(&waits), order, "{waits:?}");
        }
    }
}
