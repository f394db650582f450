// AttemptRunner::RunTask: included by the files that start transfers, nowhere else.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "worker/agent/attempt_runner.h"

namespace longhaul::agent {

template <typename Result>
void AttemptRunner::RunTask(TaskRunner* runner, std::function<Result()> work,
                            std::function<void(AttemptRunner*, const Result&)> then) {
  runner->Run([weak = weak_from_this(), mailbox = env_->mailbox, work = std::move(work), then = std::move(then)] {
    mailbox->Post([weak, result = work(), then] {
      if (const auto self = weak.lock(); self != nullptr && !self->gone()) then(self.get(), result);
    });
  });
}

}  // namespace longhaul::agent
