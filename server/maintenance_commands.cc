#include "server/maintenance_commands.h"

#include <ostream>

#include "base/format.h"
#include "base/program/error_text.h"
#include "storage/backup.h"
#include "storage/check_state.h"

namespace longhaul::server {
namespace {

int Failed(const absl::Status& status, std::ostream& err) {
  err << program::DescribeErrorInLine("longhauld", program::LocalFileError(status),
                                      "`longhauld --help` lists the commands");
  return 1;
}

int Backup(const std::string& state_dir, const std::string& destination, std::ostream& out, std::ostream& err) {
  const absl::StatusOr<storage::BackupReport> report = storage::BackupState(state_dir, destination);
  if (!report.ok()) return Failed(report.status(), err);
  out << "backup of " << state_dir << " in " << destination << ": " << report->jobs << " jobs, database of "
      << FormatBytes(report->database_bytes) << ", " << report->blobs_copied << " blobs copied and "
      << report->blobs_kept << " there already, " << FormatBytes(report->bytes_copied) << " written, "
      << report->blobs_removed << " blobs removed that nothing refers to any more\n";
  for (const std::string& sha256 : report->lost) err << "blob " << sha256 << " is lost: the original has it no more\n";
  return report->lost.empty() ? 0 : 1;
}

int Check(const std::string& state_dir, bool hash_blobs, std::ostream& out, std::ostream& err) {
  const absl::StatusOr<storage::CheckReport> report = storage::CheckState(state_dir, {hash_blobs});
  if (!report.ok()) return Failed(report.status(), err);
  for (const std::string& problem : report->problems) err << problem << "\n";
  out << report->jobs << " jobs, " << report->events << " events, " << report->blobs << " blobs of "
      << FormatBytes(report->blob_bytes) << (hash_blobs ? ", every byte read" : "") << ", " << report->unrecorded_blobs
      << " files without a row: ";
  if (report->problems_total == 0) {
    out << "in order\n";
  } else {
    out << report->problems_total << " problems\n";
  }
  return report->problems_total == 0 ? 0 : 1;
}

}  // namespace

MaintenanceCommands::MaintenanceCommands(CLI::App* app, const std::string* state_dir) : state_dir_(state_dir) {
  CLI::App* backup = app->add_subcommand("backup", "Copies the state folder, also while a scheduler runs on it");
  backup->fallthrough();
  backup->add_option("DEST", destination_, "A folder of its own; a backup there before is brought up to date")
      ->required();
  backup->callback([this] {
    run_ = [this](std::ostream& out, std::ostream& err) { return Backup(*state_dir_, destination_, out, err); };
  });
  CLI::App* check = app->add_subcommand("check", "Proves the state folder whole, also while a scheduler runs on it");
  check->fallthrough();
  check->add_flag("--hash-blobs", hash_blobs_, "Reads every blob and compares its SHA-256");
  check->callback([this] {
    run_ = [this](std::ostream& out, std::ostream& err) { return Check(*state_dir_, hash_blobs_, out, err); };
  });
}

}  // namespace longhaul::server
