// Masks straight to COCO's run-length encoding: runs go down the columns, while the pixels are made row by row. Where a row
// differs from the one above it, a run begins or ends there; these borders, few, are put into columns afterwards.

#include "../native/parallel.h"
#include "../native/regionrt.h"
#include "rows.h"

namespace regionrt {
namespace REGIONRT_VARIANT {

struct Border {
    int32_t x, y;  // in the crop
};

// A growing list of borders; `add` is false without memory.
class Borders {
  public:
    ~Borders() { free(items_); }

    bool add(int64_t x, int64_t y) {
        if (count_ == room_) {
            const int64_t room = room_ == 0 ? 1024 : 2 * room_;
            void* grown = realloc(items_, (size_t)room * sizeof(Border));
            if (grown == nullptr) return false;
            items_ = static_cast<Border*>(grown);
            room_ = room;
        }
        items_[count_++] = {(int32_t)x, (int32_t)y};
        return true;
    }

    int64_t count() const { return count_; }
    const Border& operator[](int64_t index) const { return items_[index]; }

  private:
    Border* items_ = nullptr;
    int64_t count_ = 0, room_ = 0;
};

static bool find_changes(const uint8_t* above, const uint8_t* row, int64_t width, int64_t y, Borders& borders) {
    int64_t x = 0;
    for (; x + 8 <= width; x += 8) {
        if (load_as<uint64_t>(above + x) == load_as<uint64_t>(row + x)) continue;
        for (int64_t i = x; i < x + 8; ++i) {
            if (above[i] != row[i] && !borders.add(i, y)) return false;
        }
    }
    for (; x < width; ++x) {
        if (above[x] != row[x] && !borders.add(x, y)) return false;
    }
    return true;
}

// Where the pixels of the crop change, and behind its last row what is still open ends.
static bool find_borders(MaskRows& rows, const MaskPlace& place, Borders& borders) {
    const int64_t width = rows.width(), height = place.bottom - place.top;
    Scratch<uint8_t> memory(2 * width);
    if (memory.failed()) return false;
    uint8_t *above = memory.get(), *row = above + width;
    memset(above, 0, (size_t)width);
    for (int64_t y = 0; y < height; ++y) {
        rows.row(place.top + y, row);
        if (!find_changes(above, row, width, y, borders)) return false;
        uint8_t* swap = above;
        above = row;
        row = swap;
    }
    memset(row, 0, (size_t)width);
    return find_changes(above, row, width, height, borders);
}

// COCO's text: from the fourth on, each count minus the one two before, in groups of five bits, low first.
class CountWriter {
  public:
    explicit CountWriter(char* text) : start_(text), text_(text) {}

    void add(int64_t count) {
        int64_t value = index_ > 2 ? count - last_[index_ % 2] : count;
        last_[index_ % 2] = count;
        ++index_;
        for (bool more = true; more;) {
            const int64_t group = value & 0x1f;
            value >>= 5;  // keeps the sign
            more = group & 0x10 ? value != -1 : value != 0;
            *text_++ = (char)(48 + (group | (more ? 0x20 : 0)));
        }
    }

    int64_t length() const { return text_ - start_; }

  private:
    char *start_, *text_;
    int64_t last_[2] = {}, index_ = 0;
};

constexpr int64_t kMostPerCount = 8;  // characters: photos have less than 2^39 pixels

// The encoding of one mask, in memory that the caller frees; null without memory.
static char* encode(const regionrt_rle_call* call, int64_t index, int64_t* length) {
    const MaskPlace place = mask_place(call->boxes + 4 * index, call->side, call->height, call->width);
    const int64_t side = call->side, width = place.right - place.left, height = call->height;
    Borders borders;
    if (width > 0 && place.bottom > place.top) {
        MaskRows rows(call->masks + index * side * side, place, call->side, call->threshold);
        if (rows.failed() || !find_borders(rows, place, borders)) return nullptr;
    }
    // Sorted by column; within a column they come in the order of the rows already.
    Scratch<int64_t> starts(width + 1), flat(borders.count());
    char* text = static_cast<char*>(malloc((size_t)(kMostPerCount * (borders.count() + 2))));
    if (starts.failed() || flat.failed() || text == nullptr) {
        free(text);
        return nullptr;
    }
    memset(starts.get(), 0, (size_t)(width + 1) * sizeof(int64_t));
    for (int64_t i = 0; i < borders.count(); ++i) ++starts[borders[i].x + 1];
    for (int64_t x = 0; x < width; ++x) starts[x + 1] += starts[x];
    for (int64_t i = 0; i < borders.count(); ++i) {
        flat[starts[borders[i].x]++] = (place.left + borders[i].x) * height + place.top + borders[i].y;
    }
    CountWriter writer(text);
    int64_t before = 0;
    for (int64_t i = 0; i < borders.count(); ++i) {
        // An end at the bottom of the photo and a beginning at the top of the next column: the run goes on.
        if (i % 2 == 1 && i + 1 < borders.count() && flat[i] == flat[i + 1]) {
            ++i;
            continue;
        }
        writer.add(flat[i] - before);
        before = flat[i];
    }
    const int64_t total = height * call->width;
    if (before != total || borders.count() == 0) writer.add(total - before);
    *length = writer.length();
    return text;
}

int32_t rle(const regionrt_rle_call* call) {
    Scratch<char*> texts(call->count);
    Scratch<int64_t> lengths(call->count);
    if (texts.failed() || lengths.failed()) return REGIONRT_NO_MEMORY;
    Failure failure;
    auto one = [&](int64_t index) {
        texts[index] = encode(call, index, &lengths[index]);
        if (texts[index] == nullptr) failure.note();
    };
    parallel_for(call->count, call->threads, one);
    int64_t end = 0;
    for (int64_t i = 0; i < call->count; ++i) {
        if (!failure.noted()) {
            if (end + lengths[i] <= call->capacity) memcpy(call->text + end, texts[i], (size_t)lengths[i]);
            call->ends[i] = end += lengths[i];
        }
        free(texts[i]);
    }
    return failure.noted() ? REGIONRT_NO_MEMORY : 0;
}

}  // namespace REGIONRT_VARIANT
}  // namespace regionrt
