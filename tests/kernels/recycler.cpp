// Threads take blocks from the recycler, write to them and give them back, while some release what
// is kept and the process forks: no block has two owners, no child waits, and in the end no more
// is kept than may be. Prints what is not so. Argument: number of forks.
#include <malloc.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <thread>
#include <vector>

#include "../../csrc/cpu/memory.h"

namespace {

using crad::Recycler;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "not so: %s\n", what);
  std::_Exit(1);
}

// Bytes of address space that this process uses.
size_t mapped() {
  size_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

// Takes a block, and finds at its ends what it wrote there.
void use(Recycler& recycler, size_t bytes, size_t owner) {
  const Recycler::Block taken = recycler.take(bytes);
  auto* const block = static_cast<volatile size_t*>(taken.memory);
  expect(block != nullptr, "there is memory");
  expect(reinterpret_cast<uintptr_t>(block) % 64 == 0, "a block begins with a cache line");
  const size_t least = Recycler::size_of(bytes);
  expect(taken.size >= least && taken.size <= least + least / 4, "a block is not much too large");
  const size_t last = bytes / sizeof(size_t) - 1;
  block[0] = block[last] = owner;
  std::this_thread::yield();
  expect(block[0] == owner && block[last] == owner, "a block has one owner");
  recycler.give_back(taken);
}

void use_sizes(Recycler& recycler, size_t owner, std::mt19937& random) {
  const size_t fewest = Recycler::kSmallest;
  use(recycler, fewest + random() % fewest, owner);
  if (random() % 64 == 0) use(recycler, Recycler::kKept - fewest + random() % (2 * fewest), owner);
}

}  // namespace

int main(int, char** arguments) {
  using crad::recycler;
  constexpr size_t kThreads = 4;
  mallopt(M_ARENA_MAX, 1);  // or each thread may reserve 64 MiB of addresses for small blocks
  const size_t before = mapped();
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (size_t owner = 1; owner <= kThreads; ++owner)
    threads.emplace_back([&, owner] {
      std::mt19937 random(static_cast<unsigned>(owner));
      while (!done) {
        use_sizes(recycler, owner, random);
        if (random() % 256 == 0) recycler.release();
      }
    });
  for (int forks = std::atoi(arguments[1]); forks > 0; --forks) {
    const pid_t child = fork();
    expect(child >= 0, "the process forks");
    if (child == 0) {
      alarm(30);  // ends one that waits
      std::mt19937 random(static_cast<unsigned>(forks));
      for (int i = 0; i < 4; ++i) use_sizes(recycler, 0, random);
      recycler.release();
      _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a child ends by itself");
  }
  done = true;
  for (std::thread& thread : threads) thread.join();
  threads.clear();

  constexpr size_t kOther = 64 << 20;  // stacks, the sanitizer's own
  recycler.release();
  const size_t released = mapped();
  std::vector<Recycler::Block> blocks;
  for (int i = 0; i < 30; ++i) blocks.push_back(recycler.take(20 << 20));
  for (const Recycler::Block& block : blocks) recycler.give_back(block);
  const size_t kept = mapped() - released;
  expect(kept > Recycler::kKept - (32 << 20) && kept <= Recycler::kKept,
         "as much is kept as may be");
  expect(recycler.take(20 << 20).memory == blocks.back().memory, "the newest block is taken first");
  recycler.give_back(blocks.back());
  recycler.release();
  expect(mapped() <= released, "all that was kept is released");
  expect(mapped() <= before + kThreads * (16 << 20) + kOther, "nothing is lost");

  for (size_t bytes = Recycler::kSmallest; bytes <= Recycler::kKept; bytes += bytes / 97 + 1) {
    const size_t size = Recycler::size_of(bytes);
    expect(size >= bytes && (size - bytes) * 8 <= size, "an eighth of a block is unused at most");
    expect(Recycler::size_of(size) == size, "blocks have few sizes");
  }
  return 0;
}
