//! Why a member is, or was, suspect or dead: what a person asks who does not believe it.
//!
//! When a suspicion begins a case is opened; what happens in it is written down as it happens: who
//! accused, whose word counted, which of this node's own probes failed and who was asked in them,
//! which foreign claim of death an answer outweighed. When it ends the case is closed with how it
//! ended and what was known then: this node's own health, the last answer over the connection, the
//! doubts. A closed case stays until the next suspicion of that member, and one that ended in death
//! stays beside the next. Nothing here decides anything.
//!
//! Everything is bounded: the entries of a case and the cases. When there are too many cases the
//! one that was opened first goes; a crash of half a cluster is not explained a thousand times.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{node_id::NodeId, stats::MemberStatus};

/// Accusations kept in one case; more are counted. No profile waits for more than four.
pub const MAX_CASE_ACCUSATIONS: usize = 16;

/// Own probes kept in one case, the first and the latest; more are counted. A suspicion that nobody
/// confirms sees about one in each shortest wait, and has six of those.
pub const MAX_CASE_PROBES: usize = 8;

/// Members whose cases are kept. Each takes up to about two kilobytes.
const MAX_CASES: usize = 128;

/// Something that a connection showed and that makes its peer doubtful.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// The peer's host said that nobody is there: an unreachable port, or a stateless reset. The
    /// process that answered before is gone, if it is true.
    Refused,
    /// The connection ended by a time-out or an error that it does not survive.
    Lost,
    /// The connection stands, and nothing that is sent is taken.
    Stalled,
    /// The connection stands, and pings are not answered.
    Unanswered,
}

impl Doubt {
    /// All kinds, in the order of their numbers.
    pub(super) const ALL: [Self; 4] = [Self::Refused, Self::Lost, Self::Stalled, Self::Unanswered];

    /// The doubt as a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Lost => "lost",
            Self::Stalled => "stalled",
            Self::Unanswered => "unanswered",
        }
    }
}

/// What this node knows of a member's standing, and why it has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The member.
    pub node: NodeId,
    /// What this node believes of it.
    pub status: MemberStatus,
    /// Since when.
    pub since: Instant,
    /// The incarnation of its record.
    pub incarnation: u64,
    /// What its connection showed.
    pub evidence: Evidence,
    /// How unwell this node itself seems to be now; 0 is well.
    pub health_score: u32,
    /// When a suspect is dead unless it answers or refutes; confirmations bring it nearer. Nothing as
    /// long as no probe of this node's own has failed: then it is asked first.
    pub dead_at: Option<Instant>,
    /// The suspicion that runs, or the last one that did.
    pub case: Option<Case>,
    /// The last one that ended in death, if it is not `case`.
    pub last_death: Option<Case>,
}

/// What a member's connection showed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// When its reactor answered last.
    pub last_answer: Option<Instant>,
    /// The last doubt of each kind.
    pub doubts: Vec<(Doubt, Instant)>,
}

/// One suspicion, from the first accusation to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The incarnation of the accused.
    pub incarnation: u64,
    /// When it began.
    pub began: Instant,
    /// How many members were alive or suspect then, this node included.
    pub members: usize,
    /// How long it takes with enough confirmations.
    pub shortest: Duration,
    /// How long it takes with none.
    pub longest: Duration,
    /// How many confirmations are enough; 0 where nobody could confirm.
    pub wanted: usize,
    /// The first [`MAX_CASE_ACCUSATIONS`] accusations; the first of all began it.
    pub accusations: Vec<Accused>,
    /// How many more there were.
    pub more_accusations: u64,
    /// This node's own probes that ended in it: the first, and the latest up to
    /// [`MAX_CASE_PROBES`] in all.
    pub probes: Vec<ProbeReport>,
    /// How many are not listed.
    pub more_probes: u64,
    /// Foreign claims of death that an answer over the connection outweighed.
    pub vetoes: u64,
    /// How it ended; nothing while it runs.
    pub verdict: Option<Verdict>,
}

/// One member's accusation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accused {
    /// Who accuses; this node too.
    pub by: NodeId,
    /// When this node heard of it.
    pub at: Instant,
    /// The accuser's own datagram or probe brought it.
    pub first_hand: bool,
    /// It said that the member is dead, not only suspect.
    pub dead: bool,
    /// It shortened the wait as a confirmation.
    pub counted: bool,
}

/// One of this node's own probes of the accused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReport {
    /// When it began.
    pub started: Instant,
    /// When it was answered or failed.
    pub ended: Instant,
    /// How many members were asked to try as well.
    pub helpers: usize,
    /// How many of those said that they hear nothing either.
    pub nacks: usize,
    /// A ping over the connection was asked for; whether there was a connection is not known here.
    pub over_connection: bool,
    /// It was answered, one way or another.
    pub answered: bool,
}

/// How a suspicion ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// When.
    pub at: Instant,
    /// What it came to.
    pub ending: Ending,
    /// How unwell this node itself seemed to be.
    pub health_score: u32,
    /// What the connection had shown.
    pub evidence: Evidence,
}

/// What a suspicion came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The accused said that it is alive.
    Refuted,
    /// It left.
    Left,
    /// Its time was up: dead.
    Dead {
        /// The wait had come down to the floor, because its ports refused.
        fast: bool,
    },
    /// Somebody else's word was taken for it. Only without [`Rules::own_probe`](super::Rules).
    TakenOver {
        /// Whose.
        from: NodeId,
    },
}

impl Ending {
    fn is_death(&self) -> bool {
        match self {
            Self::Dead { .. } | Self::TakenOver { .. } => true,
            Self::Refuted | Self::Left => false,
        }
    }
}

impl Case {
    pub(super) fn accuse(&mut self, accused: Accused) {
        if self.accusations.len() < MAX_CASE_ACCUSATIONS {
            self.accusations.push(accused);
        } else {
            self.more_accusations += 1;
        }
    }

    pub(super) fn probe(&mut self, report: ProbeReport) {
        if self.probes.len() == MAX_CASE_PROBES {
            self.probes.remove(1);
            self.more_probes += 1;
        }
        self.probes.push(report);
    }
}

#[derive(Debug)]
struct Kept {
    serial: u64,
    case: Case,
    last_death: Option<Case>,
}

/// The cases of all members.
#[derive(Debug, Default)]
pub(super) struct Cases {
    by_node: BTreeMap<NodeId, Kept>,
    serial: u64,
}

impl Cases {
    pub(super) fn open(&mut self, node: NodeId, case: Case) {
        self.serial += 1;
        let before = self.by_node.remove(&node);
        let last_death = before.and_then(|kept| {
            let verdict = kept.case.verdict.as_ref();
            if verdict.is_some_and(|verdict| verdict.ending.is_death()) {
                Some(kept.case)
            } else {
                kept.last_death
            }
        });
        if self.by_node.len() >= MAX_CASES {
            let oldest = self.by_node.iter().min_by_key(|(_, kept)| kept.serial);
            if let Some(oldest) = oldest.map(|(node, _)| node.clone()) {
                self.by_node.remove(&oldest);
            }
        }
        let kept = Kept {
            serial: self.serial,
            case,
            last_death,
        };
        self.by_node.insert(node, kept);
    }

    /// The case that runs about a member, if it is kept.
    pub(super) fn running(&mut self, node: &NodeId) -> Option<&mut Case> {
        let kept = self.by_node.get_mut(node)?;
        kept.case.verdict.is_none().then_some(&mut kept.case)
    }

    pub(super) fn forget(&mut self, node: &NodeId) {
        self.by_node.remove(node);
    }

    /// The latest case of a member, and the last before it that ended in death.
    pub(super) fn of(&self, node: &NodeId) -> (Option<Case>, Option<Case>) {
        match self.by_node.get(node) {
            Some(kept) => (Some(kept.case.clone()), kept.last_death.clone()),
            None => (None, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn case(now: Instant) -> Case {
        Case {
            incarnation: 1,
            began: now,
            members: 5,
            shortest: Duration::from_secs(4),
            longest: Duration::from_secs(24),
            wanted: 2,
            accusations: Vec::new(),
            more_accusations: 0,
            probes: Vec::new(),
            more_probes: 0,
            vetoes: 0,
            verdict: None,
        }
    }

    fn verdict(at: Instant, ending: Ending) -> Verdict {
        Verdict {
            at,
            ending,
            health_score: 0,
            evidence: Evidence::default(),
        }
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a starting point in time; nothing is measured"
    )]
    fn the_last_death_stays_beside_the_cases_after_it() {
        let now = Instant::now();
        let mut cases = Cases::default();
        cases.open(id("a"), case(now));
        let dead = verdict(now, Ending::Dead { fast: false });
        cases.running(&id("a")).unwrap().verdict = Some(dead.clone());
        assert!(cases.running(&id("a")).is_none());
        for _ in 0..2 {
            cases.open(id("a"), case(now));
            let (running, last_death) = cases.of(&id("a"));
            assert_eq!(running.unwrap().verdict, None);
            assert_eq!(last_death.unwrap().verdict, Some(dead.clone()));
            cases.running(&id("a")).unwrap().verdict = Some(verdict(now, Ending::Refuted));
        }
        cases.forget(&id("a"));
        assert_eq!(cases.of(&id("a")), (None, None));
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a starting point in time; nothing is measured"
    )]
    fn cases_and_what_stands_in_them_are_bounded() {
        let now = Instant::now();
        let mut cases = Cases::default();
        for i in 0..MAX_CASES + 10 {
            cases.open(id(&format!("n{i}")), case(now));
        }
        assert_eq!(cases.by_node.len(), MAX_CASES);
        assert_eq!(cases.of(&id("n9")), (None, None), "the oldest went");
        let case = cases.running(&id("n10")).unwrap();
        for i in 0..100 {
            case.accuse(Accused {
                by: id("x"),
                at: now,
                first_hand: true,
                dead: false,
                counted: false,
            });
            case.probe(ProbeReport {
                started: now,
                ended: now,
                helpers: i,
                nacks: 0,
                over_connection: true,
                answered: false,
            });
        }
        assert_eq!(case.accusations.len(), MAX_CASE_ACCUSATIONS);
        assert_eq!(case.more_accusations, 84);
        assert_eq!(case.more_probes, 92);
        let helpers: Vec<usize> = case.probes.iter().map(|probe| probe.helpers).collect();
        assert_eq!(helpers, [0, 93, 94, 95, 96, 97, 98, 99]);
    }
}
