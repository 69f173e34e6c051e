//! Judging: suspicion, confirmation, death.
//!
//! A suspicion begins with this node's own failed probe or with somebody's accusation. It ends when
//! the accused refutes it by a newer record, or when its time is up *and* this node's own latest
//! probe has failed; then the accused is dead here. The rules that shorten the time are in
//! `suspicion`, everything that happens is written into a case (`explain`).
//!
//! Accusations hold for exactly the incarnation that is stored. They count as confirmations only in
//! the accuser's own authenticated datagram, and those of members that are dead here not at all. A
//! foreign "dead" shortens the wait. While an answer over the connection is fresh, neither is
//! believed: no suspicion begins here, none is shortened, and instead of passing the accusation on,
//! which would go on for ever where nobody remembers it, this node tells the accused. Who still doubts
//! a member that is dead or has left here is told so, with the record if it lacks the latest, but not
//! more often than once in a gossip interval.
//!
//! A member **cries wolf** when two suspicions that began here in its name were refuted lately. Most often
//! it loses what it sends or receives itself, and would have everybody suspect healthy members and clear
//! them again all the time. Its next accusation by gossip begins no suspicion and is not passed on: the
//! accused is told, and this node asks it at once, so that a true accusation costs one probe more, and
//! an invented one, be it in the name of somebody honest, no more than that. Its word confirms a
//! suspicion that runs as anybody's does, and in a sync it counts as before; there nobody is blamed,
//! since whoever syncs tells what it believes and not what it saw.
//!
//! # How long until a crash is known
//!
//! With `n` live members, `P` the probe interval, `S_min = mult · max(1, log₁₀ n) · P` and
//! `S_max = max_mult · S_min`, all members healthy (each point of the health score of a prober adds
//! one `P` to its probe) and none that refuted or cried wolf lately (up to four probes more of the
//! accused, and one of those who hear of it):
//!
//! - some member has a failed probe after at most `(2(n − 1) − 1) · P + P = (2n − 2) · P`, the gap
//!   between two turns in a list that is shuffled after each pass, and the probe itself; with many
//!   members probing, 1.6 · P + P is expected, whatever `n`;
//! - the others hear of it within `D`, a few gossip intervals;
//! - each is done with its own probe after `S_min / 2 + P ≤ S_min`, and by then confirmations
//!   have brought the wait to `S_min`; were they all lost, it would be `S_max`.
//!
//! So everyone knows after at most `(2n − 2) · P + D + S`, where `S = S_min` when no confirmations
//! are possible (`n − 2 < mult − 2`) or when they arrive, and `S_max` at the very worst. With three
//! members and the `lan` profile that is 4 s + 4 s + `D`, where `D` is below half a second without
//! loss: 8.5 s; 6 s are expected. The `local` profile takes a second less, `wan` 20 s + 30 s.
//!
//! # How long with evidence, when the ports refuse
//!
//! Every member with a connection to the crashed process pings over it once in `H` (1 s up to 100
//! peers), and the host of the process answers that the port is closed. So, from the crash on:
//!
//! - after at most `H` and a round trip everybody's connection is refused, whatever `n`, and
//!   everybody probes at once, by datagram and over the connection (each is the others' helper);
//! - that probe ends after `Q = max(timeout, P − timeout)`, so that each way has the time that it
//!   has in an ordinary probe: if the refusal was false, the answer has to find its way;
//! - everybody accuses, in datagrams of its own, where a confirmation counts. With everybody's news
//!   going to a few others five times a second, the two that are wanted are there after two or
//!   three rounds of gossip, while the wait runs;
//! - a refusal, a failed probe of one's own and those confirmations make three members that asked
//!   in vain. Then the wait is a floor of one `P` since the suspicion began: time for a refutation
//!   that was on its way, and for a process that starts again at once. A dead one has none to make.
//!
//! In all `H + Q + P`, with `lan` 1 s + 0.5 s + 1 s = 2.5 s at worst and 2 s as a rule, for 4 members
//! and for 100. A process that is stopped or starved keeps its ports, so nothing refuses and it has
//! its whole `S_min` to `S_max`; so has one whose host is gone. Where nobody is left to confirm
//! (three members or fewer) a second failed probe of one's own, right after the first, stands in
//! for the others: one lost exchange together with a forged refusal kills nobody. That takes half a
//! second to a second more. The refusal must have been seen *here*: hearsay of one would let a liar
//! shorten the waits of others.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::node_id::NodeId;

use super::{
    Accusation, Event, Statement, Swim, Transmit,
    dissemination::Kind,
    explain::{Accused, Case, Ending, Evidence, Verdict},
    members::{Member, Standing},
    message::{self, Body, MAX_RECORDS},
    probing::REFUTATION_MEMORY,
    suspicion::{Suspicion, Waits},
    timer::Timer,
};

/// What an accuser does not know of somebody who is gone here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lacks {
    Verdict,
    /// It doubts an earlier incarnation: it has missed a refutation, or a leave, of which nobody
    /// speaks any more, and no accusation of the later incarnation would count with it.
    Record,
}

impl Swim {
    /// Somebody says that a member is suspect or dead. Returns what it should be told of that member.
    pub(super) fn on_accusation(
        &mut self,
        now: Instant,
        from: &NodeId,
        statement: &Statement,
        accusation: &Accusation,
        credible: bool,
    ) -> Option<Lacks> {
        let Accusation {
            node,
            incarnation,
            accuser,
        } = accusation;
        if *node == self.id {
            self.on_accused(now, *incarnation);
            return None;
        }
        if !credible || *accuser == self.id {
            return None;
        }
        let is_somebody = accuser == from || self.members.get(accuser).is_some_and(Member::is_live);
        if !is_somebody && self.config.rules.first_hand_confirmations {
            // Of nobody, or of who has to refute before it may accuse.
            self.counters.unknown_members += 1;
            return None;
        }
        let memory = self.config.probe_interval * REFUTATION_MEMORY;
        let cries_wolf = self.config.rules.patience
            && self
                .members
                .get(accuser)
                .is_some_and(|accuser| accuser.cries_wolf(now, memory));
        let Some(member) = self.members.get_mut(node) else {
            self.counters.unknown_members += 1;
            return None;
        };
        let condemned = matches!(statement, Statement::Dead(_));
        let first_hand = from == accuser;
        if member.incarnation() != *incarnation {
            self.counters.stale += 1;
            let is_behind = *incarnation < member.incarnation();
            return (is_behind && first_hand && !member.is_live()).then_some(Lacks::Record);
        }
        let is_fresh = member.is_fresh(now, self.config.probe_interval);
        let relay = match &member.standing {
            Standing::Alive if is_fresh => {
                self.counters.vetoes += 1;
                self.tell_accused(now, node, statement);
                false
            }
            Standing::Alive if cries_wolf => {
                self.counters.disbelieved += 1;
                self.tell_accused(now, node, statement);
                self.ask_soon(now, node);
                false
            }
            Standing::Alive => {
                self.suspect(now, node, accuser.clone(), first_hand);
                if condemned {
                    self.condemn(now, node, accuser);
                }
                true
            }
            Standing::Suspect(suspicion) => {
                if first_hand && suspicion.is_fast() {
                    self.heard_as_well(node);
                }
                let news = self.note_accusation(now, node, accuser, first_hand, condemned);
                let shortened = condemned && self.condemn(now, node, accuser);
                // Where a confirmation only counts at first hand, relaying it would be useless.
                shortened || (news && !self.config.rules.first_hand_confirmations)
            }
            Standing::Dead { .. } => {
                if condemned {
                    self.heard_as_well(node);
                }
                return (first_hand && !condemned).then_some(Lacks::Verdict);
            }
            Standing::Left => false,
        };
        if relay {
            self.spread_statement(now, node, statement);
        }
        None
    }

    /// Tells a member what is said of it, so that it can refute; not more often than once an interval,
    /// however often it is said.
    pub(super) fn tell_accused(&mut self, now: Instant, node: &NodeId, statement: &Statement) {
        let pause = self.config.probe_interval;
        let Some(member) = self.members.get_mut(node) else {
            return;
        };
        let destination = member.record.record.gossip_addr;
        let told = &mut member.rare_mut().told;
        if told.is_some_and(|at| now.saturating_duration_since(at) < pause) {
            return;
        }
        *told = Some(now);
        self.counters.sent.count(&Body::Gossip);
        self.transmits.push_back(Transmit {
            to: node.clone(),
            destination,
            payload: message::encode_statement(Some(&self.id), statement),
        });
    }

    /// Counts an accusation of a suspect, if it confirms what is known; false when it tells nothing
    /// new.
    pub(super) fn note_accusation(
        &mut self,
        now: Instant,
        node: &NodeId,
        by: &NodeId,
        first_hand: bool,
        dead: bool,
    ) -> bool {
        let Some(member) = self.members.get_mut(node) else {
            return false;
        };
        let Standing::Suspect(suspicion) = &mut member.standing else {
            return false;
        };
        let may_count = first_hand || !self.config.rules.first_hand_confirmations;
        let counted = may_count && suspicion.confirm(by);
        if counted {
            // An instant gone by would look as if this process had stood still.
            let deadline = suspicion.deadline().max(now);
            self.timers.set(Timer::Suspicion(node.clone()), deadline);
        }
        if let Some(case) = self.cases.running(node)
            && (counted
                || !case
                    .accusations
                    .iter()
                    .any(|a| a.by == *by && a.dead == dead))
        {
            case.accuse(Accused {
                by: by.clone(),
                at: now,
                first_hand,
                dead,
                counted,
            });
        }
        counted
    }

    /// Others say of `node` what this node is spreading: each time it is heard makes it once less
    /// that it needs to be told.
    fn heard_as_well(&mut self, node: &NodeId) {
        if self.config.rules.feedback {
            let max_transmits = self.config.retransmits(self.members.live());
            self.queue.heard(node, Kind::Statement, max_transmits);
        }
    }

    /// Tells a member that still doubts others that they are gone here: one datagram for all that
    /// one of its own names, as far as there is room, and no more than one in a gossip interval. Who
    /// has a gossip key can accuse in any member's name, and must not have records sent to it at any
    /// rate; an honest accuser says it again.
    pub(super) fn tell_accuser(
        &mut self,
        now: Instant,
        to: &NodeId,
        gone: &BTreeMap<&NodeId, Lacks>,
    ) {
        if gone.is_empty() || !self.config.rules.check_suspects {
            return;
        }
        let pause = self.config.gossip_interval;
        let is_early = |at: Instant| now.saturating_duration_since(at) < pause;
        let answered = |accuser: &Member| accuser.rare().and_then(|rare| rare.answered_doubts);
        let accuser = self.members.get(to);
        if accuser.and_then(answered).is_some_and(is_early) {
            return;
        }
        let mut payload = Vec::new();
        for (node, lacks) in gone.iter().take(MAX_RECORDS) {
            let about = self.what_is_lacking(node, *lacks);
            for piece in about.into_iter().flatten() {
                // Without the record the verdict means nothing to it.
                if payload.len() + piece.len() > self.config.max_payload_bytes {
                    break;
                }
                payload.extend(piece);
            }
        }
        let Some(accuser) = self.members.get_mut(to).filter(|_| !payload.is_empty()) else {
            return;
        };
        accuser.rare_mut().answered_doubts = Some(now);
        let destination = accuser.record.record.gossip_addr;
        self.counters.sent.count(&Body::Gossip);
        self.transmits.push_back(Transmit {
            to: to.clone(),
            destination,
            payload,
        });
    }

    /// The record of a member that is gone, for whom it is news, and the verdict if it is dead.
    fn what_is_lacking(&self, node: &NodeId, lacks: Lacks) -> [Option<Vec<u8>>; 2] {
        let Some(member) = self.members.get(node).filter(|member| !member.hearsay) else {
            return [None, None];
        };
        let record = match lacks {
            Lacks::Record => Some(message::encode_record(&member.record.signed)),
            Lacks::Verdict => None,
        };
        let verdict = match member.standing {
            Standing::Dead { .. } => Some(message::encode_statement(
                Some(&self.id),
                &Statement::Dead(Accusation {
                    node: node.clone(),
                    incarnation: member.incarnation(),
                    accuser: self.id.clone(),
                }),
            )),
            Standing::Alive | Standing::Suspect(_) | Standing::Left => None,
        };
        [record, verdict]
    }

    /// `by` says that a suspect is dead: leaves it the shortest time only, unless its connection
    /// says otherwise. False when that changed nothing.
    pub(super) fn condemn(&mut self, now: Instant, node: &NodeId, by: &NodeId) -> bool {
        let Some(member) = self.members.get_mut(node) else {
            return false;
        };
        let is_fresh = member.is_fresh(now, self.config.probe_interval);
        let Standing::Suspect(suspicion) = &mut member.standing else {
            return false;
        };
        if is_fresh {
            self.counters.vetoes += 1;
            if let Some(case) = self.cases.running(node) {
                case.vetoes += 1;
            }
            return false;
        }
        if !self.config.rules.own_probe {
            self.take_over_death(now, node, by);
            return true;
        }
        let shortened = suspicion.condemn();
        if shortened {
            let deadline = suspicion.deadline().max(now);
            self.timers.set(Timer::Suspicion(node.clone()), deadline);
        }
        shortened
    }

    /// Begins to doubt a member that is alive. Unless the doubt is its own, this node has to look
    /// for itself.
    pub(super) fn suspect(&mut self, now: Instant, node: &NodeId, by: NodeId, first_hand: bool) {
        let Some(member) = self.members.get(node) else {
            return;
        };
        let refused = member.is_refused();
        let n = self.members.live();
        let min = self.config.suspicion_min(n);
        let waits = Waits {
            min,
            max: self.config.suspicion_max(n),
            floor: self.config.suspicion_floor(n),
            wanted: if self.config.rules.lha_suspicion {
                self.config.confirmations(n)
            } else {
                0
            },
        };
        let case = Case {
            incarnation: member.incarnation(),
            began: now,
            members: n,
            shortest: waits.min,
            longest: if waits.wanted > 0 {
                waits.max
            } else {
                waits.min
            },
            wanted: waits.wanted,
            accusations: vec![Accused {
                by: by.clone(),
                at: now,
                first_hand,
                dead: false,
                counted: false,
            }],
            more_accusations: 0,
            probes: Vec::new(),
            more_probes: 0,
            vetoes: 0,
            verdict: None,
        };
        self.cases.open(node.clone(), case);
        let mut suspicion = Suspicion::new(by.clone(), now, waits);
        if refused {
            suspicion.refuse();
        }
        self.timers
            .set(Timer::Suspicion(node.clone()), suspicion.deadline());
        if self.config.rules.check_suspects && by != self.id {
            let check = now + self.rng.between(Duration::ZERO, min / 2);
            self.check_by(check, node);
        }
        self.members
            .set_standing(node, Standing::Suspect(Box::new(suspicion)), now);
        self.counters.suspicions += 1;
        log::debug!(target: "swim", node:% = node, by:% = by; "member is suspect");
        self.events.push_back(Event::Suspect {
            node: node.clone(),
            by,
        });
    }

    /// Says that a member did not answer us.
    pub(super) fn accuse(&mut self, now: Instant, node: NodeId, incarnation: u64) {
        let accusation = Accusation {
            node,
            incarnation,
            accuser: self.id.clone(),
        };
        let node = accusation.node.clone();
        self.spread_statement(now, &node, &Statement::Suspect(accusation));
    }

    pub(super) fn on_suspicion_over(&mut self, now: Instant, node: NodeId) {
        let Some(member) = self.members.get(&node) else {
            return;
        };
        let Standing::Suspect(suspicion) = &member.standing else {
            return;
        };
        if suspicion.own_probe_failed() || !self.config.rules.own_probe {
            self.die(now, &node);
        } else if !self.probes.is_probing(&node) {
            // Nobody dies on hearsay: when this probe fails, its end finds the time is up.
            self.timers.set(Timer::Check(node), now);
        }
    }

    pub(super) fn die(&mut self, now: Instant, node: &NodeId) {
        let Some(member) = self.members.get(node) else {
            return;
        };
        let Standing::Suspect(suspicion) = &member.standing else {
            return;
        };
        let (by, fast) = (suspicion.accuser().clone(), suspicion.is_fast());
        let dead = Statement::Dead(Accusation {
            node: node.clone(),
            incarnation: member.incarnation(),
            accuser: self.id.clone(),
        });
        self.counters.fast_deaths += u64::from(fast);
        self.declare_dead(now, node, by, Ending::Dead { fast });
        self.spread_statement(now, node, &dead);
        self.force_out_if_asked(now, node);
    }

    /// Takes `from`'s word for it that a suspect is dead.
    fn take_over_death(&mut self, now: Instant, node: &NodeId, from: &NodeId) {
        let ending = Ending::TakenOver { from: from.clone() };
        self.declare_dead(now, node, from.clone(), ending);
        self.force_out_if_asked(now, node);
    }

    fn declare_dead(&mut self, now: Instant, node: &NodeId, by: NodeId, ending: Ending) {
        self.close_case(now, node, ending);
        self.bury(now, node, Standing::dead(by.clone()));
        self.counters.deaths += 1;
        log::debug!(target: "swim", node:% = node, by:% = by; "member is dead");
        self.events.push_back(Event::Dead {
            node: node.clone(),
            by,
        });
        self.queue.remove(node, Kind::Record);
    }

    pub(super) fn close_case(&mut self, now: Instant, node: &NodeId, ending: Ending) {
        let (Some(member), Some(case)) = (self.members.get(node), self.cases.running(node)) else {
            return;
        };
        case.verdict = Some(Verdict {
            at: now,
            ending,
            health_score: self.awareness.score(),
            evidence: evidence_of(member),
        });
    }

    pub(super) fn force_out_if_asked(&mut self, now: Instant, node: &NodeId) {
        if self.members.get(node).is_some_and(|m| m.forced().is_some()) {
            self.force_out(now, node);
        }
    }

    pub(super) fn force_out(&mut self, now: Instant, node: &NodeId) {
        let Some(member) = self.members.get(node) else {
            return;
        };
        let Some(forced) = member.forced().cloned() else {
            return;
        };
        // Nobody here was ever told that a member by hearsay was up.
        let known = !member.hearsay;
        self.bury(now, node, Standing::Left);
        log::debug!(target: "swim", node:% = node, by:% = forced.issuer; "member is forced out");
        if known {
            let by = Some(forced.issuer.clone());
            self.events.push_back(Event::Left {
                node: node.clone(),
                by,
            });
        }
        self.spread_statement(now, node, &Statement::ForcedLeave(forced));
    }

    /// Gives a member up and starts the life of its tombstone.
    pub(super) fn bury(&mut self, now: Instant, node: &NodeId, standing: Standing) {
        self.forget_doubts(node);
        self.abandon_probes_of(node);
        self.members.set_standing(node, standing, now);
        self.timers
            .set(Timer::Reap(node.clone()), now + self.config.tombstone);
    }

    pub(super) fn forget_doubts(&mut self, node: &NodeId) {
        self.timers.cancel(&Timer::Suspicion(node.clone()));
        self.timers.cancel(&Timer::Check(node.clone()));
        self.queue.remove(node, Kind::Statement);
    }
}

/// What a member's connection showed, for an explanation.
pub(super) fn evidence_of(member: &Member) -> Evidence {
    Evidence {
        last_answer: member.answered(),
        doubts: member.doubts().collect(),
    }
}
