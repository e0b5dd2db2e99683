// Memory for large results, kept for the next one when a tensor is freed. The C library returns
// such blocks to the system, and the first touch of new pages costs more than what the kernels
// write to them: with the memory recycled, a training step on CRAD's shapes takes about half the
// time.
//
// Nothing here locks, throws or calls the C library's allocator, so that tensors can be freed
// anywhere, and a process can fork at any moment.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace crad {

class Recycler {
 public:
  static constexpr size_t kSmallest = 8 << 20;  // bytes; smaller blocks the C library keeps itself
  static constexpr size_t kKept = 256 << 20;    // bytes kept at most while no tensor uses them

  // A block of at least so many bytes, `kSmallest` or more, at the beginning of a huge page; null
  // if there is no memory, not even that of the blocks that were kept.
  void* take(size_t bytes) noexcept {
    const size_t size = size_of(bytes);
    // The newest first: caches may still hold it.
    const uint32_t next = next_.load();
    for (uint32_t age = 1; age <= kSlots; ++age) {
      std::atomic<uintptr_t>& slot = slots_[(next - age) % kSlots];
      uintptr_t block = slot.load();
      if (block != 0 && size_in(block) == size && slot.compare_exchange_strong(block, 0))
        return memory_of(block);
    }
    if (void* const memory = map(size)) return memory;
    release();
    return map(size);
  }

  // Keeps a block that was taken for so many bytes, and frees the oldest where too much is kept.
  void give_back(void* memory, size_t bytes) noexcept {
    const size_t size = size_of(bytes);
    if (size > kKept) {
      munmap(memory, size);
      return;
    }
    const uint32_t place = next_.fetch_add(1);
    free_block(slots_[place % kSlots].exchange(block_of(memory, size)));
    size_t kept = 0;
    for (const std::atomic<uintptr_t>& slot : slots_) kept += size_in(slot.load());
    for (uint32_t i = 1; i < kSlots && kept > kKept; ++i)
      kept -= std::min(kept, free_block(slots_[(place + i) % kSlots].exchange(0)));
  }

  // Frees all that is kept.
  void release() noexcept {
    for (std::atomic<uintptr_t>& slot : slots_) free_block(slot.exchange(0));
  }

  // The size of the blocks for so many bytes. Of those that are kept there are eight between a
  // power of two and the next, so that results of varying size find one, and no more than a ninth
  // of it is not used.
  static size_t size_of(size_t bytes) noexcept {
    size_t step = kUnit;
    while (16 * step <= bytes && bytes <= kKept) step *= 2;
    return (bytes + step - 1) / step * step;
  }

 private:
  static constexpr size_t kUnit = 1 << 20;  // of the sizes of blocks, a multiple of any small page
  static constexpr uintptr_t kPage = 2 << 20;  // a huge one
  // A block that so many later ones have passed by is freed.
  static constexpr uint32_t kSlots = 256;

  // A block is one number, its address and its size in units, so that who takes it from a slot, in
  // one step, has both. 0: none.
  static_assert(kSmallest >= 8 * kUnit && kKept / kUnit < kPage);
  static uintptr_t block_of(void* memory, size_t size) noexcept {
    return reinterpret_cast<uintptr_t>(memory) | size / kUnit;
  }
  static void* memory_of(uintptr_t block) noexcept {
    return reinterpret_cast<void*>(block / kPage * kPage);
  }
  static size_t size_in(uintptr_t block) noexcept { return block % kPage * kUnit; }

  // How much that was.
  static size_t free_block(uintptr_t block) noexcept {
    if (block != 0) munmap(memory_of(block), size_in(block));
    return size_in(block);
  }

  static void* map(size_t size) noexcept {
    // A huge page more than that, of which what lies before and behind the block is returned.
    void* const mapped =
        mmap(nullptr, size + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    const uintptr_t before = -reinterpret_cast<uintptr_t>(mapped) % kPage;
    char* const memory = static_cast<char*>(mapped) + before;
    if (before > 0) munmap(mapped, before);
    munmap(memory + size, kPage - before);
#if defined(MADV_HUGEPAGE)
    madvise(memory, size, MADV_HUGEPAGE);
#endif
    return memory;
  }

  std::atomic<uintptr_t> slots_[kSlots] = {};
  std::atomic<uint32_t> next_{0};  // the slot for the next block that is given back
};

// The one of the process. It is there from the start, with no code that would make it, and is never
// destroyed: tensors may outlive every static object.
inline Recycler recycler;

}  // namespace crad
