//! What docs/MEMBERSHIP.md promises: each figure of an experiment that has a limit is held against it.
//!
//! A promise is about the size at which it was made: smaller clusters, and the tiny runs of `--quick`,
//! have no say.

use super::report::Row;

enum Limit {
    AtMost(f64),
    AtLeast(f64),
    /// At most so many times what another candidate has in the same row.
    OfOther(f64, &'static str),
    /// At most what a publication says, where the row has it.
    Published(&'static str),
}

struct Promise {
    experiment: &'static str,
    /// The row of this name; with `_` at its end, all whose names begin so.
    metric: &'static str,
    nodes: usize,
    candidate: Candidate,
    limit: Limit,
}

enum Candidate {
    Nodosum,
    WithoutEvidence,
}

const fn promise(
    experiment: &'static str,
    metric: &'static str,
    nodes: usize,
    candidate: Candidate,
    limit: Limit,
) -> Promise {
    Promise {
        experiment,
        metric,
        nodes,
        candidate,
        limit,
    }
}

const PROMISES: [Promise; 14] = {
    use Candidate::{Nodosum, WithoutEvidence};
    use Limit::{AtLeast, AtMost, OfOther, Published};
    [
        promise("E1", "false_positives", 100, Nodosum, OfOther(0.01, "swim")),
        promise(
            "E1",
            "false_positives",
            100,
            WithoutEvidence,
            OfOther(0.02, "swim"),
        ),
        promise(
            "E1",
            "false_positives_at_healthy_stressed_1",
            100,
            Nodosum,
            AtMost(0.0),
        ),
        promise(
            "E1",
            "false_positives_at_healthy_stressed_2",
            100,
            Nodosum,
            AtMost(0.0),
        ),
        promise(
            "E1",
            "false_positives_at_healthy_stressed_4",
            100,
            Nodosum,
            AtMost(0.0),
        ),
        promise(
            "E1",
            "false_positives_at_healthy_stressed_8",
            100,
            Nodosum,
            AtMost(0.0),
        ),
        promise("E2", "known_everywhere_p99", 100, Nodosum, AtMost(3.0)),
        promise("E3", "equal_views_after", 2_000, Nodosum, AtMost(45.0)),
        promise(
            "E5",
            "ingress_flip_flop_healthy_removed",
            200,
            Nodosum,
            AtMost(0.0),
        ),
        promise("E5", "egress_80_healthy_removed", 200, Nodosum, AtMost(0.0)),
        promise(
            "E5",
            "ingress_80_healthy_removed",
            200,
            Nodosum,
            AtMost(0.0),
        ),
        promise(
            "E6",
            "change_gossip_",
            1_000,
            Nodosum,
            Published("memberlist_published"),
        ),
        promise(
            "E8",
            "gossip_both_ways_",
            10,
            Nodosum,
            Published("chitchat_limit"),
        ),
        promise("E14", "known_within_1_s", 3_600, Nodosum, AtLeast(100.0)),
    ]
};

impl Promise {
    fn is_about(&self, metric: &str) -> bool {
        metric == self.metric || (self.metric.ends_with('_') && metric.starts_with(self.metric))
    }
}

/// One sentence for each promise that the rows do not keep.
pub(crate) fn missed(experiment: &str, rows: &[Row]) -> Vec<String> {
    let mut out = Vec::new();
    for promise in PROMISES.iter().filter(|it| it.experiment == experiment) {
        let concerned = rows
            .iter()
            .filter(|row| promise.is_about(&row.metric) && row.nodes >= promise.nodes);
        for row in concerned {
            let other = |name: &str| {
                let found = row.others.iter().find(|(other, _)| *other == name);
                found.map(|(_, value)| *value)
            };
            let (who, ours) = match promise.candidate {
                Candidate::Nodosum => ("nodosum", row.nodosum),
                Candidate::WithoutEvidence => (
                    "nodosum without evidence",
                    other("nodosum_without_evidence"),
                ),
            };
            let (least, most) = match promise.limit {
                Limit::AtMost(most) => (None, Some(most)),
                Limit::AtLeast(least) => (Some(least), None),
                Limit::OfOther(times, name) => (None, other(name).map(|value| value * times)),
                Limit::Published(name) => (None, other(name)),
            };
            // What was not measured in this row, or has no limit in it, promises nothing.
            let Some(ours) = ours else { continue };
            let is_kept =
                least.is_none_or(|least| ours >= least) && most.is_none_or(|most| ours <= most);
            if !is_kept {
                let limit = least.or(most).unwrap_or(f64::NAN);
                out.push(format!(
                    "{} at {} members: {who} has {ours:.3}, the limit is {limit:.3} {}",
                    row.metric, row.nodes, row.unit
                ));
            }
        }
    }
    out
}
