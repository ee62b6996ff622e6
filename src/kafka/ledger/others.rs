//! The ledgers of other instances: looked at, and taken over by order or because one was silent for too long.

use std::collections::BTreeSet;

use rdkafka::consumer::Consumer as _;
use wal::WalError;

use super::client::{client_with_token, commit, instances, read, read_of};
use super::{Driver, LedgerNews, OtherLedger};
use crate::kafka::{identity, lock};
use crate::keeper::LedgerCommit;
use crate::ledger::{self, Entry};
use crate::orders::Order;

impl Driver {
    pub(super) fn carry_out_orders(&mut self) -> Result<(), WalError> {
        for (file, order) in self.at.orders.pending() {
            if order != Order::Accept && !self.at.keeper.is_open() {
                continue;
            }
            let done = match &order {
                Order::Accept => {
                    tracing::info!(
                        topic = self.at.topic,
                        "gaps accepted: stopped partitions go on"
                    );
                    lock(&self.handle.news).push(LedgerNews::Accept);
                    Ok(true)
                }
                Order::Acknowledge => self.at.keeper.acknowledge().map(|()| {
                    tracing::info!(topic = self.at.topic, "lost messages acknowledged");
                    true
                }),
                Order::Rewind { instance } => self.take_over(instance),
            };
            match done {
                Ok(true) => self.at.orders.done(&file),
                // It waits until there is room for a note.
                Ok(false) | Err(WalError::NoSpace { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Owes what another instance owes; its ledger says so. False when Kafka does not answer.
    pub(super) fn take_over(&mut self, instance: &str) -> Result<bool, WalError> {
        let group = ledger::group_of(&self.at.group, instance);
        let taken = client_with_token(&self.at.kafka, &group)
            .and_then(|client| Ok((read(&client, &self.at.topic)?, client)));
        let (ledger, client) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                self.failed("read the ledger to take over", &error);
                return Ok(false);
            }
        };
        let topic = identity::of_topic(self.client.client(), &self.at.topic, identity::TOPIC_WAIT);
        if !self.at.keeper.is_about(&topic) {
            let why = "the topic was created again, or the ledger is not read: this instance must go on first";
            self.failed("take over what another instance owes", &why);
            return Ok(false);
        }
        let mut owed = Vec::new();
        for (partition, written) in &ledger {
            let Some(range) = ledger::owed(*partition, written.delivered, &written.entry) else {
                continue;
            };
            if self.at.keeper.is_of_our_topic(&written.entry) {
                owed.push(range);
            } else {
                tracing::error!(
                    code = "KAFKA_RECREATED",
                    topic = self.at.topic,
                    from_instance = instance,
                    partition,
                    from = range.from,
                    to = range.to,
                    "this instance's ledger is about another topic of this name: what it owes cannot be fetched"
                );
            }
        }
        for range in &owed {
            tracing::warn!(
                code = "LEDGER_TAKEN_OVER",
                topic = self.at.topic,
                from_instance = instance,
                partition = range.partition,
                from = range.from,
                to = range.to,
                replay = range.offsets(),
                "fetching what another instance owes"
            );
        }
        self.at.keeper.take_over(owed)?;
        // A disk that is lost now must not take the debt with it: our ledger has it before theirs is written over.
        if !self.commit_due() {
            return Ok(false);
        }
        let commits: Vec<LedgerCommit> = ledger
            .into_iter()
            .map(|(partition, written)| LedgerCommit {
                partition,
                delivered: written.entry.next,
                entry: Entry { taken_over_by: self.at.instance.clone(), ..written.entry },
            })
            .collect();
        if !commits.is_empty()
            && let Err(error) = commit(&client, &self.at.topic, &commits)
        {
            self.failed("note in the ledger that it was taken over", &error);
            return Ok(false);
        }
        Ok(true)
    }

    /// Reads the other instances' ledgers, and takes over from one that was silent for too long.
    pub(super) fn look_at_others(&mut self) -> Result<(), WalError> {
        let names = match instances(&self.at.kafka, &self.at.group) {
            Ok(names) => names,
            Err(error) => {
                tracing::debug!(%error, "list the ledgers of other instances");
                return Ok(());
            }
        };
        let mut others = Vec::new();
        let mut silent = Vec::new();
        let names: BTreeSet<String> =
            names.into_iter().filter(|name| *name != self.at.instance).collect();
        self.silences.keep(&names);
        for instance in names {
            let Ok(ledger) = read_of(&self.at.kafka, &self.at.topic, &self.at.group, &instance)
            else {
                continue;
            };
            let owed = ledger.iter().filter_map(|(partition, written)| {
                ledger::owed(*partition, written.delivered, &written.entry)
            });
            let owed_offsets = owed.map(|range| range.offsets()).sum();
            let heard_ms = ledger.values().map(|written| written.entry.at_ms).max().unwrap_or(0);
            let now = self.now();
            let silent_for = self.silences.look(&instance, ledger, now);
            if self.at.is_to_be_taken_over(owed_offsets, silent_for) {
                silent.push(instance.clone());
            }
            let silent_for_s = silent_for.as_secs();
            others.push(OtherLedger { instance, owed_offsets, heard_ms, silent_for_s });
        }
        lock(&self.handle.snapshot).others = others;
        for instance in silent {
            if !self.at.keeper.is_open() {
                break;
            }
            match self.take_over(&instance) {
                // Looked at again in a minute.
                Ok(_) | Err(WalError::NoSpace { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
