//! Deliberate bugs, and the oracles one of which must notice each.

/// The deliberate bug of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    None,
    CommitBeforeDurable,
    /// The group's offset does not wait for the ledger.
    CommitBeforeLedger,
    /// What the ledger says about another log, or an older copy of this one, is not looked at.
    TrustForeignLog,
    /// What the log lost is acknowledged and forgotten.
    IgnoreGap,
    /// The offset of the last message is taken for the one after it, and one more is added.
    CommitOnePast,
    /// A commit that was refused because the partitions are lost is tried again as a new member.
    RetryRefusedCommit,
    /// A partition that went is not forgotten: what becomes durable of it later is committed.
    RememberGonePartition,
    /// What another instance owes is not noted in the log.
    TakeOverUnnoted,
    /// The other's ledger is written over before the own one is confirmed.
    WriteOverFirst,
    /// Offsets of a topic that was deleted are believed in the one that was created again.
    LogPlusOneAfterRecreation,
    /// What the group's offset is about is not looked at.
    TrustForeignCommit,
    /// What was fetched from another topic settles what is owed of the old one.
    SettleWithForeign,
    /// Where retention overtook it, consumption goes on without a word.
    IgnoreRetention,
    /// A partition that has less than was consumed goes on at its end, whatever was written since.
    GoOnAtEnd,
    /// That the store lost power is not looked at.
    TrustStore,
    /// The hold-back counts while nobody could look at the store.
    HoldBackUnwatched,
    /// An absent value meta is not written, so that an older one shows through.
    LeaveMetaOut,
    /// A cause that is the table's is taken for the rows'.
    BelieveRefusals,
    /// Leader epochs are not looked at: a history that was replaced looks like the old one.
    IgnoreLeaderEpoch,
}

impl Bug {
    /// It shows only where the store loses power, or where a table of it changes.
    pub const fn is_about_losses(self) -> bool {
        matches!(self, Self::TrustStore | Self::HoldBackUnwatched | Self::BelieveRefusals)
    }
}

/// A deliberate bug, the oracle that must notice it, and others that may notice it in other seeds: what one does not
/// see at once shows as another's trouble later.
pub struct Mutant {
    pub bug: Bug,
    pub oracle: &'static str,
    pub others: &'static [&'static str],
}

const fn mutant(bug: Bug, oracle: &'static str, others: &'static [&'static str]) -> Mutant {
    Mutant { bug, oracle, others }
}

pub const MUTANTS: [Mutant; 19] = [
    mutant(Bug::CommitBeforeDurable, "I3", &["I5", "I8"]),
    mutant(Bug::CommitBeforeLedger, "I13", &["I3", "I5", "I8"]),
    mutant(Bug::TrustForeignLog, "I3", &["I5", "I8", "I13"]),
    // What is not fetched again is missing, or leaves an older value standing.
    mutant(Bug::IgnoreGap, "I3", &["I5", "I8", "I13"]),
    // Behind the last message, where the group never comes to rest, there is nothing that could be missing.
    mutant(Bug::CommitOnePast, "I3", &["I5", "I8", "I9", "I13"]),
    mutant(Bug::RetryRefusedCommit, "G1", &["G2"]),
    mutant(Bug::RememberGonePartition, "G1", &["G2"]),
    mutant(Bug::TakeOverUnnoted, "I3", &["I5", "I8", "I13"]),
    mutant(Bug::WriteOverFirst, "I13", &["I3", "I5"]),
    mutant(Bug::LogPlusOneAfterRecreation, "I3", &["I5", "I8", "I9", "G2"]),
    mutant(Bug::TrustForeignCommit, "I3", &["I5", "I8", "I9", "G2"]),
    // What was settled wrongly may be owed in one place and not in another, and never come to rest.
    mutant(Bug::SettleWithForeign, "I3", &["I5", "I8", "I9"]),
    mutant(Bug::IgnoreRetention, "I3", &["I5", "I8", "I13"]),
    mutant(Bug::TrustStore, "I3", &["I5", "I8", "I13"]),
    mutant(Bug::HoldBackUnwatched, "I3", &["I5", "I8", "I13"]),
    mutant(Bug::LeaveMetaOut, "I8", &[]),
    mutant(Bug::BelieveRefusals, "I10", &[]),
    mutant(Bug::GoOnAtEnd, "I3", &["I5", "I8", "I9", "I13", "G2"]),
    mutant(Bug::IgnoreLeaderEpoch, "I3", &["I5", "I8", "I9", "I13", "G2"]),
];
