//! Definitions of series into their five tables, many at a time.
//!
//! Series share most of what describes them: their name, their host, their service. Written one by one, the same few
//! rows are written again and again, and each is a request. Here every row is written once per call, rows of one
//! partition as one batch, lone rows of the same replicas up to ten together.

use std::collections::{BTreeMap, HashMap};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use scylla::serialize::row::SerializeRow;
use scylla::statement::prepared::PreparedStatement;
use scylla::value::CqlTimestamp;

use super::replicas;
use super::store::Connected;
use crate::error::StoreError;
use crate::rows::Definition;

/// Requests of one call that are on their way together.
const AT_ONCE: usize = 8;
/// Most rows of one partition in a batch.
const BATCH_ROWS_MAX: usize = 100;
/// Most partitions of a batch: Cassandra warns of more.
const BATCH_PARTITIONS_MAX: usize = 10;
/// Most bytes of a batch of several partitions, about: Cassandra warns at 5 KiB.
const BATCH_BYTES_MAX: usize = 3 << 10;

type Request<'a> = BoxFuture<'a, Result<(), StoreError>>;

/// A series as the tables have it.
struct Described<'a> {
    definition: &'a Definition,
    /// Region, tenant, name: a partition of two tables.
    name: (&'a str, &'a str, &'a str),
    dimensions: Vec<String>,
    dimension_names: Vec<&'a str>,
    /// Bytes of all its texts.
    bytes: usize,
}

impl Connected {
    /// Every table that describes these series.
    pub(super) async fn write_definitions(
        &self,
        definitions: &[Definition],
    ) -> Result<(), StoreError> {
        let mut described: Vec<Described<'_>> = definitions.iter().map(Described::of).collect();
        described.sort_unstable_by(|one, other| {
            (one.name, &one.dimensions).cmp(&(other.name, &other.dimensions))
        });
        let created = self.created_at_ms(&described).await;
        let statements = &self.statements;

        let series: Vec<_> = described
            .iter()
            .map(|described| {
                let Described { definition, name: (region, tenant_id, name), .. } = described;
                let (id, stamp) = (definition.series.id.as_bytes(), definition.stamp);
                let dimensions = &described.dimensions;
                let row =
                    (id, *region, *tenant_id, *name, dimensions, stamp.write_time_us, stamp.ttl_s);
                (row, described.bytes)
            })
            .collect();
        let metrics: Vec<_> = described
            .iter()
            .zip(created)
            .map(|(described, created_at_ms)| {
                let Described { definition, name: (region, tenant_id, name), .. } = described;
                let stamp = definition.stamp;
                let row = (
                    *region,
                    *tenant_id,
                    *name,
                    &described.dimensions,
                    &described.dimension_names,
                    definition.series.id.as_bytes(),
                    CqlTimestamp(created_at_ms),
                    CqlTimestamp(definition.updated_at_ms),
                    stamp.write_time_us,
                    stamp.ttl_s,
                );
                (row, described.bytes.saturating_mul(2))
            })
            .collect();
        // Rows that several series share, once each, with the latest write time.
        let (mut by_name, mut by_value, mut by_metric) =
            (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for Described { definition, name: (region, tenant_id, name), .. } in &described {
            let at = definition.stamp.write_time_us;
            for dimension in &definition.series.dimensions {
                let (key, value) = (dimension.name.as_str(), dimension.value.as_str());
                latest(&mut by_name, ((*region, *tenant_id, key), value), at);
                latest(&mut by_value, ((*region, *tenant_id, key, value), *name), at);
                latest(&mut by_metric, ((*region, *tenant_id, *name), (key, value)), at);
            }
        }
        let dimensions: Vec<_> = by_name
            .into_iter()
            .map(|(((region, tenant_id, key), value), at)| {
                let row = (region, tenant_id, key, value, at);
                (row, text_bytes(&[region, tenant_id, key, value]))
            })
            .collect();
        let dimensions_metrics: Vec<_> = by_value
            .into_iter()
            .map(|(((region, tenant_id, key, value), name), at)| {
                let row = (region, tenant_id, key, value, name, at);
                (row, text_bytes(&[region, tenant_id, key, value, name]))
            })
            .collect();
        let metrics_dimensions: Vec<_> = by_metric
            .into_iter()
            .map(|(((region, tenant_id, name), (key, value)), at)| {
                let row = (region, tenant_id, name, key, value, at);
                (row, text_bytes(&[region, tenant_id, name, key, value]))
            })
            .collect();

        let mut requests: Vec<Request<'_>> = Vec::new();
        self.plan(&statements.series, &series, |one, other| one.0 == other.0, &mut requests);
        self.plan(
            &statements.metric,
            &metrics,
            |one, other| (one.0, one.1, one.2) == (other.0, other.1, other.2),
            &mut requests,
        );
        self.plan(
            &statements.dimension,
            &dimensions,
            |one, other| (one.0, one.1, one.2) == (other.0, other.1, other.2),
            &mut requests,
        );
        self.plan(
            &statements.dimension_metric,
            &dimensions_metrics,
            |one, other| (one.0, one.1, one.2, one.3) == (other.0, other.1, other.2, other.3),
            &mut requests,
        );
        self.plan(
            &statements.metric_dimension,
            &metrics_dimensions,
            |one, other| (one.0, one.1, one.2) == (other.0, other.1, other.2),
            &mut requests,
        );
        stream::iter(requests)
            .buffer_unordered(AT_ONCE)
            .try_for_each(|()| std::future::ready(Ok(())))
            .await
    }

    /// Cuts rows of one table, which stand sorted by partition with their bytes, into requests.
    fn plan<'a, R: SerializeRow + Send + Sync>(
        &'a self,
        statement: &'a PreparedStatement,
        rows: &'a [(R, usize)],
        same_partition: impl Fn(&R, &R) -> bool,
        requests: &mut Vec<Request<'a>>,
    ) {
        let mut lone: BTreeMap<Option<u64>, Vec<&'a (R, usize)>> = BTreeMap::new();
        for partition in rows.chunk_by(|one, other| same_partition(&one.0, &other.0)) {
            if let [row] = partition {
                lone.entry(replicas::of_row(&self.session, statement, &row.0))
                    .or_default()
                    .push(row);
                continue;
            }
            for part in partition.chunks(BATCH_ROWS_MAX) {
                let part: Vec<&R> = part.iter().map(|(row, _)| row).collect();
                requests.push(async move { self.execute_all(statement, &part).await }.boxed());
            }
        }
        for (replicas, rows) in lone {
            let partitions_max = if replicas.is_some() { BATCH_PARTITIONS_MAX } else { 1 };
            let (mut batch, mut bytes) = (Vec::new(), 0_usize);
            for (row, row_bytes) in rows {
                if batch.len() >= partitions_max
                    || (bytes.saturating_add(*row_bytes) > BATCH_BYTES_MAX && !batch.is_empty())
                {
                    let full = std::mem::take(&mut batch);
                    requests.push(async move { self.execute_all(statement, &full).await }.boxed());
                    bytes = 0;
                }
                batch.push(row);
                bytes = bytes.saturating_add(*row_bytes);
            }
            if !batch.is_empty() {
                requests.push(async move { self.execute_all(statement, &batch).await }.boxed());
            }
        }
    }

    /// When each series was created: what the table says if that is earlier than what the definition says. A persister
    /// that forgot it, or never knew, must not write a later one over it; and a date is not worth stopping for, so an
    /// answer that does not come is none.
    async fn created_at_ms(&self, described: &[Described<'_>]) -> Vec<i64> {
        let mut questions: Vec<BoxFuture<'_, Vec<i64>>> = Vec::new();
        for of_one_name in described.chunk_by(|one, other| one.name == other.name) {
            for group in of_one_name.chunks(BATCH_ROWS_MAX) {
                questions.push(self.earliest_created_at_ms(group).boxed());
            }
        }
        stream::iter(questions).buffered(AT_ONCE).concat().await
    }

    async fn earliest_created_at_ms(&self, group: &[Described<'_>]) -> Vec<i64> {
        let known = self.known_created_at_ms(group).await.unwrap_or_default();
        let earliest = group.iter().map(|described| {
            let own = described.definition.created_at_ms;
            known.get(&described.dimensions).map_or(own, |known| own.min(*known))
        });
        earliest.collect()
    }

    /// What the table says of some series of one name, by their dimensions.
    async fn known_created_at_ms(
        &self,
        group: &[Described<'_>],
    ) -> Option<HashMap<Vec<String>, i64>> {
        let statement = self.statements.created.as_ref()?;
        let (region, tenant_id, name) = group.first()?.name;
        let dimensions: Vec<&Vec<String>> =
            group.iter().map(|described| &described.dimensions).collect();
        let key = (region, tenant_id, name, dimensions);
        let answer = self.session.execute_unpaged(statement, key).await.ok()?;
        let rows = answer.into_rows_result().ok()?;
        let mut known = HashMap::new();
        for row in rows.rows::<(Vec<String>, Option<CqlTimestamp>)>().ok()? {
            if let Ok((dimensions, Some(created_at))) = row {
                known.insert(dimensions, created_at.0);
            }
        }
        Some(known)
    }
}

impl<'a> Described<'a> {
    fn of(definition: &'a Definition) -> Self {
        let series = definition.series.as_ref();
        let name = (series.region.as_str(), series.tenant_id.as_str(), series.name.as_str());
        let dimensions = series.dimension_list();
        let texts: usize =
            dimensions.iter().map(|dimension| dimension.len().saturating_add(4)).sum();
        Self {
            definition,
            name,
            dimension_names: series.dimension_names(),
            bytes: text_bytes(&[name.0, name.1, name.2]).saturating_add(texts),
            dimensions,
        }
    }
}

fn latest<K: Ord>(rows: &mut BTreeMap<K, i64>, key: K, write_time_us: i64) {
    let at = rows.entry(key).or_insert(write_time_us);
    *at = (*at).max(write_time_us);
}

/// Bytes of texts and of what every row has besides.
fn text_bytes(texts: &[&str]) -> usize {
    const ROW_BYTES: usize = 64;
    texts.iter().map(|text| text.len()).sum::<usize>().saturating_add(ROW_BYTES)
}
