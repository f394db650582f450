// SQLite's files behind base/disk_seam.h: the platform's own VFS, which asks the seam before each change that it makes
// to a database, its journal or its write-ahead log. Every Db opens through it, so tests cut the power of what runs in
// production. The -shm file is memory that is rebuilt at each start, and is not told of.
#pragma once

namespace longhaul::storage {

// The name to open with; registers the VFS when first called. Thread-safe.
const char* SeamVfsName();

}  // namespace longhaul::storage
