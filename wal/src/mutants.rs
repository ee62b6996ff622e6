//! Deliberate bugs, so that the tests can prove that they would notice one.
//!
//! The module exists only with the feature `mutants`; a release build has no such code. A mutant is
//! chosen per thread with [`set`]; only [`AckBeforeSync`](Mutant::AckBeforeSync) can also be chosen
//! in the configuration, for whole processes.

use std::cell::Cell;

macro_rules! mutants {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The bug a log shows.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub enum Mutant {
            /// No bug.
            #[default]
            None,
            $($(#[doc = $doc])+ $name,)+
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &'static [Mutant] = &[$(Mutant::$name,)+];
        }
    };
}

mutants! {
    /// Tickets and `durable()` resolve as soon as the batch is queued, while the committer writes
    /// only every 500 ms.
    AckBeforeSync,
    /// Groups are written and not synced.
    NoSyncOfGroups,
    /// A failed sync is tried again, and believed when it succeeds.
    RetryFailedSync,
    /// A failed write is forgotten: the group counts as written.
    ForgetFailedWrite,
    /// A failure does not poison the log.
    NoPoison,
    /// A group is durable although one before it is not.
    DurableOutOfOrder,
    /// Two groups in flight share a file description, which reports an error only once.
    SharedDescription,
    /// What is rolled back for lack of space is lost.
    LoseRolledBack,
    /// The name of a new segment is not synced.
    NoDirectorySync,
    /// A reclaimed file is used again before the loss of its name is durable.
    ReuseBeforeDirectorySync,
    /// All files have the same nonce, so that a recycled one keeps its own.
    SameNonce,
    /// Frames of any nonce are accepted.
    AnyNonce,
    /// Bodies are not checked against their checksums.
    AnyBody,
    /// A link does not hand the carry over.
    LoseCarry,
    /// The carry counts annotations that are only queued.
    CarryBeforeDurable,
    /// Recovery leaves out the annotations of the last segment.
    ForgetAnnotations,
    /// Recovery leaves the unproven tail where it is and calls it durable.
    TrustUnprovenTail,
    /// Recovery drops the unproven tail.
    DropUnprovenTail,
    /// Recovery names its segment before its bytes are synced.
    NoSyncOfRecovery,
    /// Recovery takes a read error for the end of the file.
    ReadErrorIsEnd,
    /// Recovery takes damage below W for a torn tail.
    DamageIsTornTail,
    /// Recovery does not ask the CURSOR how far the log went.
    IgnoreCursorProof,
    /// A reader passes over damage in silence.
    SilentGap,
    /// Frames claim that everything appended is durable.
    WatermarkAhead,
    /// The incarnation is not counted up.
    SameIncarnation,
    /// A checkpoint notes everything durable as delivered.
    CheckpointTooFar,
    /// *Delivered* moves over holes in the acks.
    DeliveredOverHoles,
    /// The CURSOR is written and not synced.
    NoSyncOfCursor,
    /// The CURSOR's newest slot is overwritten.
    OneCursorSlot,
    /// Segments are reclaimed as soon as they are acked, before the CURSOR says so.
    ReclaimBeforeCursor,
    /// The hold-back does not hold.
    NoHoldBack,
    /// A link notes *delivered* instead of the floor of redelivery.
    LinkNotesDelivered,
    /// Stuck records are acked before their copies are durable.
    AckBeforeMoved,
    /// The quota is not looked at.
    NoQuota,
}

thread_local! {
    static ACTIVE: Cell<Mutant> = const { Cell::new(Mutant::None) };
}

/// Chooses the bug of the logs that this thread works on.
pub fn set(mutant: Mutant) {
    ACTIVE.set(mutant);
}

/// Whether this thread's logs have the bug.
pub(crate) fn active(mutant: Mutant) -> bool {
    ACTIVE.get() == mutant
}
