// Philox4x32-10 (Salmon et al. 2011): random words from a counter and a key. Included inside the
// namespace of each target, so without a guard.

// Turns a counter into random words. Word is uint32_t or a vector of them; multiply(a, b, high,
// low) gives the halves of 64-bit products.
template <class Word>
D3PM_HOST_DEVICE inline void philox(Word (&c)[4], Word k0, Word k1) {
  for (int round = 0; round < 10; ++round) {
    Word high0, low0, high1, low1;
    multiply(0xD2511F53, c[0], high0, low0);
    multiply(0xCD9E8D57, c[2], high1, low1);
    c[0] = high1 ^ c[1] ^ k0;
    c[2] = high0 ^ c[3] ^ k1;
    c[1] = low1;
    c[3] = low0;
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
}
