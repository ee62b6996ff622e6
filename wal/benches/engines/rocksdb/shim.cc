// RocksDB as a log, for the benchmark: open a fresh database, write a batch of records that lie one
// after the other in memory, with the write-ahead log synced before the call returns, and close it.
//
// The memtable is large enough to be never flushed in a round and compaction is off, so that what
// is measured is the write-ahead log and the insertion into the memtable that RocksDB cannot leave
// out (a write with `disableWAL` has no log, a log without memtable does not exist).
//
// Errors end the process with RocksDB's own words: a benchmark fails loudly.

#include <rocksdb/db.h>
#include <rocksdb/options.h>
#include <rocksdb/version.h>
#include <rocksdb/write_batch.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

constexpr size_t MEMTABLE_BYTES = size_t{2} << 30;

void check(const char* what, const rocksdb::Status& status) {
  if (!status.ok()) {
    std::fprintf(stderr, "RocksDB could not %s: %s\n", what, status.ToString().c_str());
    std::exit(1);
  }
}

// Big-endian, so that keys ascend as a log's positions do.
void encode(uint64_t number, char (&key)[8]) {
  for (int byte = 7; byte >= 0; --byte) {
    key[byte] = static_cast<char>(number & 0xff);
    number >>= 8;
  }
}

}  // namespace

extern "C" {

const char* bench_rocksdb_version() {
  static char text[32];
  std::snprintf(text, sizeof text, "%d.%d.%d", ROCKSDB_MAJOR, ROCKSDB_MINOR, ROCKSDB_PATCH);
  return text;
}

void* bench_rocksdb_open(const char* path) {
  rocksdb::Options options;
  options.create_if_missing = true;
  options.error_if_exists = true;
  options.compression = rocksdb::kNoCompression;
  options.disable_auto_compactions = true;
  options.write_buffer_size = MEMTABLE_BYTES;
  options.max_total_wal_size = 4 * MEMTABLE_BYTES;
  options.avoid_flush_during_shutdown = true;
  options.stats_dump_period_sec = 0;
  options.info_log_level = rocksdb::WARN_LEVEL;
  rocksdb::DB* db = nullptr;
  check("open", rocksdb::DB::Open(options, path, &db));
  return db;
}

// Writes `count` records of `record_bytes` each, found at `records`, under the keys `first`,
// `first` + 1 and so on; returns when they are on the disk.
void bench_rocksdb_commit(void* db, uint64_t first, const char* records, size_t count,
                          size_t record_bytes) {
  rocksdb::WriteBatch batch(count * (record_bytes + 16) + 64);
  char key[8];
  for (size_t index = 0; index < count; ++index) {
    encode(first + index, key);
    check("add to a batch", batch.Put(rocksdb::Slice(key, sizeof key),
                                      rocksdb::Slice(records + index * record_bytes, record_bytes)));
  }
  rocksdb::WriteOptions durable;
  durable.sync = true;
  check("write", static_cast<rocksdb::DB*>(db)->Write(durable, &batch));
}

void bench_rocksdb_close(void* db) { delete static_cast<rocksdb::DB*>(db); }
}
