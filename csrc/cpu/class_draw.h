// Classes drawn from masses, tile by tile: d3pm_fast/reference/draws.py tells how.

constexpr int64_t kTile = 4096;  // classes that a pair of random numbers draws from

template <class Real>
class ClassDraw {
  using V = typename VectorOf<Real>::Type;
  using Wide = typename VectorOf<Real>::Wide;
  static constexpr int kWidth = kLanes<Real>;
  static constexpr int64_t kSpan = 64;  // classes between two entries of the running sums

 public:
  ClassDraw(int64_t padded, int64_t tile)
      : padded_(padded),
        tile_(tile),
        sums_((padded + tile - 1) / tile),
        running_(padded / kSpan + 1) {}

  // Where the sum of each tile's masses has to be before a class is drawn.
  double* sums() const { return sums_.data(); }

  // How many masses a tile has, from its first on.
  int64_t size(int64_t first) const { return std::min(tile_, padded_ - first); }

  // The tile to draw from, its first mass; numbers(i) are the i-th pair of the token's.
  template <class Numbers>
  int64_t tile(const Numbers& numbers) const {
    int64_t taken = 0;
    double running = sums()[0];
    for (int64_t i = 1; i * tile_ < padded_; ++i) {
      running += sums()[i];
      if (numbers(i).choice * running < sums()[i]) taken = i;
    }
    return taken * tile_;
  }

  // What the masses e of a tile add up to, in double, so that a class of probability 1e-9 keeps its
  // share beside one of 1. The running sum is kept.
  double sum(const Real* e, int64_t first) const {
    double total = 0;
    for (int64_t begin = 0; begin < size(first); begin += kSpan) {
      Wide part = {};
      const int64_t end = std::min(size(first), begin + kSpan);
      for (int64_t j = begin; j < end; j += kWidth)
        part += __builtin_convertvector(load<V>(e + j), Wide);
      for (int i = 0; i < kWidth; ++i) total += part[i];
      running_.data()[(first + begin) / kSpan] = total;
    }
    return total;
  }

  // The first class of a tile that was summed whose running sum passes `target`; where rounding
  // leaves none, the last one that has any mass.
  int64_t of_tile(const Real* e, int64_t first, double target) const {
    const double* ends = running_.data() + first / kSpan;
    const int64_t spans = (size(first) + kSpan - 1) / kSpan;
    const int64_t found = std::upper_bound(ends, ends + spans, target) - ends;
    const int64_t span = std::min(found, spans - 1);
    double sum = span == 0 ? 0 : ends[span - 1];
    int64_t last = -1;
    for (int64_t j = span * kSpan; j < size(first); ++j) {
      if (e[j] > 0) last = j;
      sum += e[j];
      if (sum > target && last >= 0) break;
    }
    for (int64_t j = size(first); last < 0 && j-- > 0;)
      if (e[j] > 0) last = j;
    return first + std::max<int64_t>(last, 0);
  }

 private:
  const int64_t padded_, tile_;
  const Scratch<double> sums_, running_;
};
