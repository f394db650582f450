// A fixed number of threads that run tasks in the order they came.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "worker/agent/mailbox.h"

namespace longhaul::agent {

// Thread-safe.
class TaskPool final : public TaskRunner {
 public:
  explicit TaskPool(int threads);
  // Waits for the tasks that run; those that have not begun are dropped. Cancel what blocks first.
  ~TaskPool() override;
  void Run(std::function<void()> task) override;

 private:
  void Loop();
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> tasks_;  // guarded by mutex_
  bool stopping_ = false;                    // guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace longhaul::agent
