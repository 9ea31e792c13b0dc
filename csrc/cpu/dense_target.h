// What happens to the tokens of a dense chain between the products with Qbar_s, for one set of
// vector instructions.

#include "dense_row.h"

#include "dense_gradient.h"
#include "dense_loss.h"
#include "dense_posterior.h"
#include "dense_predict.h"
#include "dense_sample.h"
