#include "storage/sqlite_vfs.h"

#include <sqlite3.h>

#include <cerrno>
#include <new>
#include <string>

#include "base/check.h"
#include "base/disk_seam.h"
#include "base/env.h"

namespace longhaul::storage {
namespace {

constexpr char kName[] = "longhaul";

// Followed in memory by the platform's own file object, as SQLite's shims do: one allocation, made by SQLite.
struct SeamFile {
  sqlite3_file base{};
  std::string path;
  bool sync_folder = false;  // a new journal or log: its folder entry is synced with its first content
  sqlite3_file* real() { return reinterpret_cast<sqlite3_file*>(this + 1); }
};

SeamFile* Of(sqlite3_file* file) { return reinterpret_cast<SeamFile*>(file); }
sqlite3_file* Real(sqlite3_file* file) { return Of(file)->real(); }
sqlite3_vfs* RealVfs(sqlite3_vfs* vfs) { return static_cast<sqlite3_vfs*>(vfs->pAppData); }

int Ask(const DiskChange& change, int code) {
  const int error_number = AskDiskSeam(change);
  if (error_number == 0) return SQLITE_OK;
  return error_number == ENOSPC ? SQLITE_FULL : code;
}

int AskSyncFolder(const std::string& path) {
  const std::string folder = path.substr(0, path.rfind('/'));
  return Ask({.kind = DiskChange::Kind::kSyncDir, .path = folder}, SQLITE_IOERR_DIR_FSYNC);
}

int Close(sqlite3_file* file) {
  const int code = Real(file)->pMethods->xClose(Real(file));
  Of(file)->~SeamFile();
  return code;
}

int Read(sqlite3_file* file, void* bytes, int count, sqlite3_int64 offset) {
  return Real(file)->pMethods->xRead(Real(file), bytes, count, offset);
}

int Write(sqlite3_file* file, const void* bytes, int count, sqlite3_int64 offset) {
  const std::string_view view(static_cast<const char*>(bytes), static_cast<size_t>(count));
  const int code = Ask({.kind = DiskChange::Kind::kWrite, .path = Of(file)->path, .offset = offset, .bytes = view},
                       SQLITE_IOERR_WRITE);
  return code != SQLITE_OK ? code : Real(file)->pMethods->xWrite(Real(file), bytes, count, offset);
}

int Truncate(sqlite3_file* file, sqlite3_int64 size) {
  const int code =
      Ask({.kind = DiskChange::Kind::kTruncate, .path = Of(file)->path, .offset = size}, SQLITE_IOERR_TRUNCATE);
  return code != SQLITE_OK ? code : Real(file)->pMethods->xTruncate(Real(file), size);
}

int Sync(sqlite3_file* file, int flags) {
  int code = Ask({.kind = DiskChange::Kind::kSyncFile, .path = Of(file)->path}, SQLITE_IOERR_FSYNC);
  if (code != SQLITE_OK) return code;
  code = Real(file)->pMethods->xSync(Real(file), flags);
  if (code != SQLITE_OK || !Of(file)->sync_folder) return code;
  // The platform's VFS has just synced the folder, too.
  code = AskSyncFolder(Of(file)->path);
  if (code == SQLITE_OK) Of(file)->sync_folder = false;
  return code;
}

int FileSize(sqlite3_file* file, sqlite3_int64* size) { return Real(file)->pMethods->xFileSize(Real(file), size); }
int Lock(sqlite3_file* file, int level) { return Real(file)->pMethods->xLock(Real(file), level); }
int Unlock(sqlite3_file* file, int level) { return Real(file)->pMethods->xUnlock(Real(file), level); }
int CheckReserved(sqlite3_file* file, int* reserved) {
  return Real(file)->pMethods->xCheckReservedLock(Real(file), reserved);
}
int FileControl(sqlite3_file* file, int operation, void* argument) {
  return Real(file)->pMethods->xFileControl(Real(file), operation, argument);
}
int SectorSize(sqlite3_file* file) { return Real(file)->pMethods->xSectorSize(Real(file)); }
int Characteristics(sqlite3_file* file) { return Real(file)->pMethods->xDeviceCharacteristics(Real(file)); }
int ShmMap(sqlite3_file* file, int page, int page_bytes, int extend, void volatile** out) {
  return Real(file)->pMethods->xShmMap(Real(file), page, page_bytes, extend, out);
}
int ShmLock(sqlite3_file* file, int offset, int count, int flags) {
  return Real(file)->pMethods->xShmLock(Real(file), offset, count, flags);
}
void ShmBarrier(sqlite3_file* file) { Real(file)->pMethods->xShmBarrier(Real(file)); }
int ShmUnmap(sqlite3_file* file, int remove) { return Real(file)->pMethods->xShmUnmap(Real(file), remove); }

// Version 2: without xFetch, so that no page is written behind the seam's back through a mapping.
constexpr sqlite3_io_methods kMethods = {
    2,        Close,         Read,        Write,      Truncate,        Sync,   FileSize, Lock,
    Unlock,   CheckReserved, FileControl, SectorSize, Characteristics, ShmMap, ShmLock,  ShmBarrier,
    ShmUnmap, nullptr,       nullptr,
};

int Open(sqlite3_vfs* vfs, const char* name, sqlite3_file* file, int flags, int* out_flags) {
  sqlite3_vfs* const real = RealVfs(vfs);
  SeamFile* const opened = new (file) SeamFile();
  if (name != nullptr) {
    opened->path = name;
    // Not by xAccess, which says of an empty file that it is not there: a reader that opens an empty log creates
    // nothing.
    if ((flags & SQLITE_OPEN_CREATE) != 0 && !FileExists(opened->path)) {
      const int code = Ask({.kind = DiskChange::Kind::kCreate, .path = opened->path}, SQLITE_CANTOPEN);
      if (code != SQLITE_OK) {
        opened->~SeamFile();
        file->pMethods = nullptr;  // nothing to close
        return code;
      }
      opened->sync_folder = (flags & (SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_WAL | SQLITE_OPEN_SUPER_JOURNAL)) != 0;
    }
  }
  const int code = real->xOpen(real, name, opened->real(), flags, out_flags);
  if (opened->real()->pMethods == nullptr) {
    opened->~SeamFile();
    file->pMethods = nullptr;
  } else {
    file->pMethods = &kMethods;
  }
  return code;
}

int Delete(sqlite3_vfs* vfs, const char* name, int sync_folder) {
  const std::string path = name;
  int code = Ask({.kind = DiskChange::Kind::kRemove, .path = path}, SQLITE_IOERR_DELETE);
  if (code != SQLITE_OK) return code;
  code = RealVfs(vfs)->xDelete(RealVfs(vfs), name, sync_folder);
  return code != SQLITE_OK || sync_folder == 0 ? code : AskSyncFolder(path);
}

// Everything that is no change goes to the platform's VFS, called as itself.
int Access(sqlite3_vfs* vfs, const char* name, int flags, int* result) {
  return RealVfs(vfs)->xAccess(RealVfs(vfs), name, flags, result);
}
int FullPathname(sqlite3_vfs* vfs, const char* name, int bytes, char* out) {
  return RealVfs(vfs)->xFullPathname(RealVfs(vfs), name, bytes, out);
}
int Randomness(sqlite3_vfs* vfs, int bytes, char* out) { return RealVfs(vfs)->xRandomness(RealVfs(vfs), bytes, out); }
int Sleep(sqlite3_vfs* vfs, int microseconds) { return RealVfs(vfs)->xSleep(RealVfs(vfs), microseconds); }
int CurrentTime(sqlite3_vfs* vfs, double* now) { return RealVfs(vfs)->xCurrentTime(RealVfs(vfs), now); }
int GetLastError(sqlite3_vfs* vfs, int bytes, char* out) {
  return RealVfs(vfs)->xGetLastError(RealVfs(vfs), bytes, out);
}
int CurrentTimeInt64(sqlite3_vfs* vfs, sqlite3_int64* now) {
  return RealVfs(vfs)->xCurrentTimeInt64(RealVfs(vfs), now);
}

// Extensions are not loaded through it: xDlOpen and its kin stay null.
sqlite3_vfs MakeVfs(sqlite3_vfs* real) {
  sqlite3_vfs vfs{};
  vfs.iVersion = 2;
  vfs.szOsFile = static_cast<int>(sizeof(SeamFile)) + real->szOsFile;
  vfs.mxPathname = real->mxPathname;
  vfs.zName = kName;
  vfs.pAppData = real;
  vfs.xOpen = Open;
  vfs.xDelete = Delete;
  vfs.xAccess = Access;
  vfs.xFullPathname = FullPathname;
  vfs.xRandomness = Randomness;
  vfs.xSleep = Sleep;
  vfs.xCurrentTime = CurrentTime;
  vfs.xGetLastError = GetLastError;
  vfs.xCurrentTimeInt64 = CurrentTimeInt64;
  return vfs;
}

}  // namespace

const char* SeamVfsName() {
  static_assert(sizeof(SeamFile) % 8 == 0, "the platform's file object follows it and holds pointers");
  static const bool registered = [] {
    sqlite3_vfs* real = sqlite3_vfs_find(nullptr);
    LH_CHECK(real != nullptr, "SQLite has no VFS");
    static sqlite3_vfs vfs = MakeVfs(real);
    LH_CHECK(sqlite3_vfs_register(&vfs, 0) == SQLITE_OK);
    return true;
  }();
  LH_CHECK(registered);
  return kName;
}

}  // namespace longhaul::storage
