//! The numbers of membership, by profile, and the formulas that scale them with the cluster.
//!
//! The values and formulas are those of HashiCorp's memberlist, which thousands of clusters run
//! on; everything here is arithmetic on a member count.

use std::time::Duration;

/// How fast and how carefully a node judges others. All nodes of a cluster should agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Time between two probes; every probe goes to the next member in a shuffled order. Shorter
    /// detects sooner and costs more datagrams.
    pub probe_interval: Duration,
    /// How long the probed member may take to answer before others are asked to try; above the
    /// round-trip time of the slowest path, and below the interval.
    pub probe_timeout: Duration,
    /// How many members are asked to try when a direct probe is not answered in time.
    pub indirect_probes: usize,
    /// The shortest suspicion lasts this many probe intervals, times log₁₀ of the member count.
    pub suspicion_mult: u32,
    /// An unconfirmed suspicion lasts this many times the shortest one.
    pub suspicion_max_mult: u32,
    /// Time between two rounds of gossip while there is news.
    pub gossip_interval: Duration,
    /// How many members a round of gossip goes to.
    pub gossip_nodes: usize,
    /// A piece of news is sent this many times, times log₁₀ of the member count.
    pub retransmit_mult: u32,
    /// Time between two full exchanges with one random member, up to 32 members; longer above.
    pub sync_interval: Duration,
    /// For how long gossip still goes to a dead member, so that it learns what is said of it.
    pub gossip_to_dead: Duration,
    /// For how long a dead or left member is remembered. It must outlive every message about it.
    pub tombstone: Duration,
    /// The health score stays below this.
    pub awareness_max: u32,
    /// Members remembered, this node and the dead included. New ones beyond that are refused.
    pub max_members: usize,
    /// What one datagram may carry after sealing.
    pub max_payload_bytes: usize,
    /// Which rules beyond the plain algorithm are followed.
    pub rules: Rules,
}

/// Which rules a node follows beyond plain probing, suspicion and gossip, one switch for each.
///
/// A node is meant to follow all of them. They can be switched off so that an experiment can run
/// the same core as a model of other systems, or find out what one rule is worth; all nodes of such
/// an experiment share one set. What signatures bring (nobody else can speak for a member) cannot be
/// switched off, since without it there would be other messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// A node that notices that it is slow gives its probes more time (Lifeguard, LHA-Probe).
    pub lha_probe: bool,
    /// A suspicion starts long and confirmations shorten it (Lifeguard, LHA-Suspicion). Off: it
    /// always takes the shortest time.
    pub lha_suspicion: bool,
    /// Whoever sends a doubted member a datagram tells it so there (Lifeguard, Buddy).
    pub buddy: bool,
    /// A helper says that it has no answer (part of LHA-Probe). Off: it keeps silent, and each
    /// failed probe is one sign of bad health.
    pub nacks: bool,
    /// What is not answered by datagram is asked over the connection as well.
    pub connection_pings: bool,
    /// Nobody dies here without a failed probe of our own. Off: a foreign "dead" is taken over at
    /// once, and a suspicion that runs out kills whatever this node has seen itself.
    pub own_probe: bool,
    /// A confirmation counts only in its author's own datagram. Off: a relayed one counts, and is
    /// relayed on.
    pub first_hand_confirmations: bool,
    /// Whoever hears of a suspicion probes the suspect out of turn.
    pub check_suspects: bool,
    /// What the connections show counts: answers over them, and the doubts they raise.
    pub evidence: bool,
    /// A process that stood still draws no conclusions from the silence of that time.
    pub lateness: bool,
    /// While there is news that was never sent, several datagrams go to one member at once.
    pub bursts: bool,
    /// A verdict that others spread as well is spread less often.
    pub feedback: bool,
    /// A node that has just joined syncs soon and then ever more rarely. Off: always at the full
    /// interval.
    pub early_syncs: bool,
    /// Two syncs in a row go to two members. Off: both are drawn by lot.
    pub alternate_syncs: bool,
    /// Who leaves says so to many members in its first datagrams.
    pub leave_burst: bool,
    /// Who has refuted suspicions lately has to fail several probes in a row before it is suspected
    /// again; and who was wrong about others lately raises no suspicion by gossip.
    pub patience: bool,
}

impl Rules {
    /// All rules.
    pub fn nodosum() -> Self {
        Self {
            lha_probe: true,
            lha_suspicion: true,
            buddy: true,
            nacks: true,
            connection_pings: true,
            own_probe: true,
            first_hand_confirmations: true,
            check_suspects: true,
            evidence: true,
            lateness: true,
            bursts: true,
            feedback: true,
            early_syncs: true,
            alternate_syncs: true,
            leave_burst: true,
            patience: true,
        }
    }

    /// A model of HashiCorp's memberlist: SWIM with Lifeguard and a probe over a stream, and none
    /// of what is ours.
    pub fn memberlist() -> Self {
        Self {
            own_probe: false,
            first_hand_confirmations: false,
            check_suspects: false,
            evidence: false,
            lateness: false,
            bursts: false,
            feedback: false,
            early_syncs: false,
            alternate_syncs: false,
            leave_burst: false,
            patience: false,
            ..Self::nodosum()
        }
    }

    /// The model without Lifeguard: what Lifeguard's authors call SWIM and compare theirs with.
    pub fn swim() -> Self {
        Self {
            lha_probe: false,
            lha_suspicion: false,
            buddy: false,
            nacks: false,
            ..Self::memberlist()
        }
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self::nodosum()
    }
}

impl Config {
    /// For nodes within one network.
    pub fn lan() -> Self {
        Self {
            probe_interval: Duration::from_secs(1),
            probe_timeout: Duration::from_millis(500),
            indirect_probes: 3,
            suspicion_mult: 4,
            suspicion_max_mult: 6,
            gossip_interval: Duration::from_millis(200),
            gossip_nodes: 3,
            retransmit_mult: 4,
            sync_interval: Duration::from_secs(30),
            gossip_to_dead: Duration::from_secs(30),
            tombstone: Duration::from_secs(24 * 60 * 60),
            awareness_max: 8,
            max_members: 16_384,
            // 1,200 bytes of datagram less what a seal with the longest node id takes, rounded
            // down; the largest signed record has to fit.
            max_payload_bytes: 1_080,
            rules: Rules::nodosum(),
        }
    }

    /// For nodes far apart.
    pub fn wan() -> Self {
        Self {
            probe_interval: Duration::from_secs(5),
            probe_timeout: Duration::from_secs(3),
            suspicion_mult: 6,
            gossip_interval: Duration::from_millis(500),
            gossip_nodes: 4,
            sync_interval: Duration::from_secs(60),
            gossip_to_dead: Duration::from_secs(60),
            ..Self::lan()
        }
    }

    /// For nodes on one machine.
    pub fn local() -> Self {
        Self {
            probe_timeout: Duration::from_millis(200),
            indirect_probes: 1,
            suspicion_mult: 3,
            gossip_interval: Duration::from_millis(100),
            retransmit_mult: 2,
            sync_interval: Duration::from_secs(15),
            gossip_to_dead: Duration::from_secs(15),
            ..Self::lan()
        }
    }

    /// The shortest suspicion among `n` members: `mult · max(1, log₁₀ n) · interval`.
    pub fn suspicion_min(&self, n: usize) -> Duration {
        self.probe_interval * self.suspicion_mult * scale_per_mille(n) / 1_000
    }

    /// The longest suspicion among `n` members: one that nobody confirms.
    pub fn suspicion_max(&self, n: usize) -> Duration {
        self.suspicion_min(n) * self.suspicion_max_mult
    }

    /// How many confirmations bring a suspicion down to its shortest. The accuser and the accused
    /// cannot confirm, so a small cluster waits for none.
    pub fn confirmations(&self, n: usize) -> usize {
        let wanted = self.suspicion_mult.saturating_sub(2) as usize;
        if n.saturating_sub(2) < wanted {
            0
        } else {
            wanted
        }
    }

    /// How long a suspicion lasts at least when the accused's own ports say that nobody is there and
    /// enough members have asked in vain. Nobody is left who could refute; what the time is for is
    /// a message that was already on its way, and a process that starts again at once.
    pub fn suspicion_floor(&self, n: usize) -> Duration {
        self.probe_interval.min(self.suspicion_min(n))
    }

    /// How long a probe lasts that asks in every way at once: each way has the time that it has in
    /// an ordinary probe.
    pub fn hasty_probe(&self) -> Duration {
        let others = self.probe_interval.saturating_sub(self.probe_timeout);
        self.probe_timeout.max(others)
    }

    /// How many times a piece of news is sent among `n` members: `mult · ⌈log₁₀(n + 1)⌉`.
    pub fn retransmits(&self, n: usize) -> u32 {
        self.retransmit_mult
            .saturating_mul(whole((n as f64 + 1.0).log10().ceil()))
    }

    /// The time between two syncs among `n` members: constant up to 32, then it grows with the
    /// logarithm, since every member starts that many and each carries all members.
    pub fn sync_every(&self, n: usize) -> Duration {
        const FREE: f64 = 32.0;
        let excess = (n as f64).log2() - FREE.log2();
        if excess <= 0.0 {
            return self.sync_interval;
        }
        self.sync_interval * (whole(excess.ceil()) + 1)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::lan()
    }
}

/// `max(1, log₁₀ n)` in thousandths, cut off as memberlist does.
fn scale_per_mille(n: usize) -> u32 {
    whole((n.max(1) as f64).log10().max(1.0) * 1_000.0)
}

/// The whole part of a small non-negative number.
fn whole(x: f64) -> u32 {
    x as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_suspicion_grows_with_the_logarithm() {
        let config = Config {
            suspicion_mult: 1,
            ..Config::lan()
        };
        for (n, millis) in [
            (1, 1_000),
            (5, 1_000),
            (10, 1_000),
            (50, 1_698),
            (100, 2_000),
            (500, 2_698),
        ] {
            assert_eq!(
                config.suspicion_min(n),
                Duration::from_millis(millis),
                "n = {n}"
            );
        }
        assert_eq!(config.suspicion_min(1_000), Duration::from_secs(3));
    }

    #[test]
    fn the_lan_profile_waits_as_long_as_memberlist_does() {
        let config = Config::lan();
        for (n, max, min) in [
            (10, 24_000, 4_000),
            (50, 40_752, 6_792),
            (100, 48_000, 8_000),
        ] {
            assert_eq!(config.suspicion_max(n), Duration::from_millis(max));
            assert_eq!(config.suspicion_min(n), Duration::from_millis(min));
        }
        let wan = Config::wan();
        assert_eq!(wan.suspicion_max(100), Duration::from_secs(360));
        assert_eq!(wan.suspicion_min(100), Duration::from_secs(60));
        assert_eq!(wan.confirmations(100), 4);
    }

    #[test]
    fn the_floor_and_the_hasty_probe_stay_within_what_they_shorten() {
        for config in [Config::lan(), Config::wan(), Config::local()] {
            for n in [1, 2, 3, 100, 10_000] {
                assert!(config.suspicion_floor(n) <= config.suspicion_min(n));
            }
            assert!(config.hasty_probe() <= config.probe_interval);
            assert!(config.hasty_probe() >= config.probe_timeout);
        }
        assert_eq!(Config::lan().suspicion_floor(100), Duration::from_secs(1));
        assert_eq!(Config::lan().hasty_probe(), Duration::from_millis(500));
    }

    #[test]
    fn small_clusters_wait_for_no_confirmation() {
        let config = Config::lan();
        let wanted: Vec<usize> = (1..=5).map(|n| config.confirmations(n)).collect();
        assert_eq!(wanted, [0, 0, 0, 2, 2]);
    }

    #[test]
    fn retransmits_grow_with_the_logarithm() {
        let config = Config {
            retransmit_mult: 3,
            ..Config::lan()
        };
        assert_eq!([0, 1, 99].map(|n| config.retransmits(n)), [0, 3, 6]);
        assert_eq!(
            [10, 100, 1_000, 10_000].map(|n| Config::lan().retransmits(n)),
            [8, 12, 16, 20]
        );
    }

    #[test]
    fn syncs_become_rarer_above_32_members() {
        let config = Config {
            sync_interval: Duration::from_secs(1),
            ..Config::lan()
        };
        for (n, secs) in [
            (0, 1),
            (1, 1),
            (32, 1),
            (33, 2),
            (64, 2),
            (65, 3),
            (128, 3),
            (10, 1),
            (100, 3),
            (1_000, 6),
            (10_000, 10),
        ] {
            assert_eq!(config.sync_every(n), Duration::from_secs(secs), "n = {n}");
        }
    }
}
